"""From a raw dataset to the transition store: conventions, checks against the environment, statistics."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from o2o_lightning.blocks import blocks
from o2o_lightning.data.raw import RawDataset, validate
from o2o_lightning.data.units import check_units, in_unit_range
from o2o_lightning.envs.make import EnvSpec
from o2o_lightning.errors import UserError
from o2o_lightning.machine import DATASET, library_versions
from o2o_lightning.replay.manifest import Manifest
from o2o_lightning.replay.store import TransitionStore, episode_sums
from o2o_lightning.replay.table import TERMINATED, TRUNCATED, Layout, Table


def build_store(raw: RawDataset, env: EnvSpec | None, file: Path | None = None) -> TransitionStore:
    """Converts a raw dataset to transitions.

    A row that is terminated and truncated is terminal, as one from an environment is: nothing is bootstrapped from it.
    Without ``next_observations`` in the source, the successor is the next row of the same episode, and rows that lack
    one are not used for TD learning, but for terminal ones, whose successor is masked: the count is ``N - 1`` less the
    time-outs among the first ``N - 1``.

    Args:
        raw, env: the dataset and its environment, without which actions stay as they are, unchecked.
        file: a new one to memory-map the transitions to; None keeps them in memory.

    Raises:
        UserError: as :func:`validate` and :func:`check_units`; widths other than the environment's.
    """
    validate(raw)
    if env is not None:
        _check_widths(raw, env)
        check_units(raw, env)
    terminated, truncated = raw.terminated, raw.truncated
    end = terminated | truncated
    known = np.ones(len(raw), np.bool_)
    if raw.next_observations is None:
        known = terminated | ~truncated
        known[-1] = False

    layout = layout_of(raw)
    size = len(raw) * layout.width
    matrix = torch.empty(size) if file is None else torch.from_file(str(file), shared=True, size=size)
    table = Table(layout, matrix := matrix.view(len(raw), layout.width))
    flags = {TERMINATED: torch.from_numpy(terminated), TRUNCATED: torch.from_numpy(truncated)}
    for rows in blocks(len(raw)):
        table.put(rows, {key: flag[rows] for key, flag in flags.items()})
        table.put(rows, _block(raw, env, end, rows))

    episodes = _episodes(end)
    complete = _complete(end, truncated & ~terminated, episodes, env.horizon if env else None)
    manifest = Manifest(
        source=raw.source,
        sha256=raw.sha256,
        env_id=env.env_id if env else raw.env_id,
        transitions=len(raw),
        td_transitions=int(known.sum()),
        episodes=len(episodes),
        complete_episodes=int(complete.sum()),
        **_statistics(raw, episodes, complete),
        terminated=int(terminated.sum()),
        truncated=int(truncated.sum()),
        observation_dim=int(raw.observations.shape[1]),
        action_dim=int(raw.actions.shape[1]),
        action_low=env.action_low.tolist() if env else None,
        action_high=env.action_high.tolist() if env else None,
        memmapped=file is not None,
        versions=library_versions(DATASET),
    )
    usable = None if known.all() else torch.from_numpy(np.flatnonzero(known))
    return TransitionStore(matrix, usable, episodes, complete, manifest)


def _block(raw: RawDataset, env: EnvSpec | None, end: NDArray[np.bool_], rows: slice) -> dict[Any, Any]:
    observation = np.asarray(raw.observations[rows], np.float32)
    if raw.next_observations is not None:
        successor = np.asarray(raw.next_observations[rows], np.float32)
    else:
        following = np.asarray(raw.observations[slice(rows.start + 1, rows.stop + 1)], np.float32)
        successor = observation.copy()
        successor[: len(following)] = following
        successor[end[rows]] = observation[end[rows]]
    return {
        "observation": torch.from_numpy(observation),
        "action": torch.from_numpy(in_unit_range(raw, env, rows)),
        "reward": torch.from_numpy(raw.rewards[rows]),
        ("next", "observation"): torch.from_numpy(successor),
    }


def layout_of(raw: RawDataset) -> Layout:
    """The columns of its transitions."""
    return Layout.of_transitions(raw.observations.shape[1], raw.actions.shape[1])


def store_bytes(raw: RawDataset) -> int:
    """What the transitions take, in memory or in a file."""
    return len(raw) * layout_of(raw).width * 4


def _check_widths(raw: RawDataset, env: EnvSpec) -> None:
    for key, columns, wanted, verb in (
        ("actions", raw.actions.shape[1], env.action_dim, "takes"),
        ("observations", raw.observations.shape[1], env.observation_dim, "gives"),
    ):
        if columns != wanted:
            raise UserError(
                f"dataset {raw.source}: '{key}' has {columns} columns, {env.env_id} {verb} {wanted}. "
                f"Pass --data.env_id, or check the file with `o2o data check {raw.source}`."
            )


def _episodes(end: NDArray[np.bool_]) -> Tensor:
    stops = np.flatnonzero(end) + 1
    if len(stops) == 0 or stops[-1] != len(end):
        stops = np.append(stops, len(end))
    starts = np.concatenate([[0], stops[:-1]])
    return torch.from_numpy(np.stack([starts, stops], axis=1).astype(np.int64))


def _complete(end: NDArray[np.bool_], truncated: NDArray[np.bool_], episodes: Tensor, horizon: int | None) -> Tensor:
    """``[E]`` bool: which episodes ran to their own end.

    A recording that stops mid-episode is often flagged as a time-out. Where most time-outs fall on the horizon, one
    that comes earlier is such a cut; where they do not (maze2d's demonstrator ends at its goals), all count.
    """
    last = episodes[:, 1].numpy() - 1
    complete = end[last]
    lengths = (episodes[:, 1] - episodes[:, 0]).numpy()
    if horizon is not None and truncated.any():
        by_limit = truncated[last]
        at_horizon = by_limit & (lengths >= horizon)
        if 2 * at_horizon.sum() >= by_limit.sum():
            complete = complete & (~by_limit | at_horizon)
    return torch.from_numpy(complete)


def _statistics(raw: RawDataset, episodes: Tensor, complete: Tensor) -> dict[str, float | None]:
    """Returns and lengths of the complete episodes, as the manifest has them."""
    returns = episode_sums(torch.from_numpy(raw.rewards), episodes)[complete].numpy()
    lengths = (episodes[:, 1] - episodes[:, 0])[complete].double().numpy()
    statistics = {f"return_{name}": getattr(returns, name) for name in ("mean", "std", "min", "max")}
    statistics["length_mean"] = lengths.mean
    return {name: float(statistic()) if len(returns) else None for name, statistic in statistics.items()}
