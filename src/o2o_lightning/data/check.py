"""Looks a dataset over: form, values, episode boundaries, the environment's bounds, and a replay in the simulator."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from o2o_lightning.data.physics import replay_check
from o2o_lightning.data.raw import RawDataset, validate
from o2o_lightning.envs.make import EnvSpec, env_spec, foreign_id
from o2o_lightning.errors import UserError

Status = Literal["ok", "warn", "fail", "skip"]
SATURATED = 1e-4


class Check(NamedTuple):
    """One finding; ``skip`` where it could not be looked at."""

    name: str
    status: Status
    detail: str


def check(raw: RawDataset, env_id: str | None = None, replay_rows: int = 200, seed: int = 0) -> list[Check]:
    """All checks of a dataset, cheap ones first; the rest is left out when the form is wrong.

    Args:
        raw: the dataset.
        env_id: environment to hold it against; by default the one it names.
        replay_rows: how many random rows are replayed in the simulator.
        seed: of the choice of rows.
    """
    try:
        validate(raw)
    except UserError as error:
        return [Check("form", "fail", str(error))]
    observation = np.asarray(raw.observations[slice(None)])
    rows = [
        Check("form", "ok", f"{len(raw)} rows, observations {observation.shape[1]}, actions {raw.actions.shape[1]}"),
        Check("finite", "ok", "no NaN, no infinity"),
        _range(observation),
        _constant(observation),
        _rewards(raw),
        _flags(raw),
        _boundaries(raw),
    ]
    try:
        env_id = env_id or foreign_id(raw.env_id, "the dataset")
        if env_id is None:
            return [*rows, Check("environment", "skip", "the dataset names none; pass --env_id")]
        env = env_spec(env_id, raw.observations.shape[1], raw.layout)
    except UserError as error:
        return [*rows, Check("environment", "fail", str(error))]
    if (columns := raw.actions.shape[1]) != env.action_dim:
        detail = f"'actions' has {columns} columns, {env_id} takes {env.action_dim}"
        return [
            *rows,
            Check("environment", "fail", detail),
            Check("actions", "skip", "widths differ"),
            _lengths(raw, env),
        ]
    rows.append(Check("environment", "ok", f"{env_id}: widths fit, horizon {env.horizon}"))
    rows += [_actions(raw, env), _lengths(raw, env)]
    return rows + [Check(*row) for row in replay_check(raw, env_id, replay_rows, seed)]


def passed(checks: list[Check]) -> bool:
    """Whether none failed; warnings and skips pass."""
    return all(row.status != "fail" for row in checks)


def _range(observation: NDArray[np.float32]) -> Check:
    low, high = float(observation.min()), float(observation.max())
    return Check("observation range", "warn" if max(-low, high) > 1e4 else "ok", f"[{low:.4g}, {high:.4g}]")


def _constant(observation: NDArray[np.float32]) -> Check:
    constant = np.flatnonzero(np.ptp(observation, axis=0) == 0).tolist()
    if constant:
        return Check("constant columns", "warn", f"observation columns {constant} never change")
    return Check("constant columns", "ok", "none")


def _rewards(raw: RawDataset) -> Check:
    low, high, mean = float(raw.rewards.min()), float(raw.rewards.max()), float(raw.rewards.mean())
    detail = f"[{low:.4g}, {high:.4g}], mean {mean:.4g}"
    if low == high:
        return Check("rewards", "warn", f"{detail}: always the same, nothing to learn from")
    return Check("rewards", "ok", detail)


def _flags(raw: RawDataset) -> Check:
    terminated, truncated = int(raw.terminated.sum()), int(raw.truncated.sum())
    both = int((raw.terminated & raw.truncated).sum())
    detail = f"{terminated} terminated, {truncated} truncated"
    if both:
        return Check("flags", "warn", f"{detail}, {both} rows both: they count as truncated")
    if terminated + truncated == 0:
        return Check("flags", "warn", f"{detail}: one endless episode, so no returns")
    return Check("flags", "ok", detail)


def _boundaries(raw: RawDataset) -> Check:
    if raw.next_observations is None:
        return Check("boundaries", "skip", "no next_observations; successors are the next rows'")
    wrong = successor_errors(raw, len(raw))
    if len(wrong):
        inside = int((~(raw.terminated | raw.truncated))[:-1].sum())
        detail = f"{len(wrong)} of {inside} rows inside episodes are not followed by their next observation"
        return Check("boundaries", "fail", f"{detail}; first: row {wrong[0]}")
    return Check("boundaries", "ok", "each row inside an episode is followed by its next observation")


def _actions(raw: RawDataset, env: EnvSpec) -> Check:
    action = np.asarray(raw.actions[slice(None)])
    span = env.action_high - env.action_low
    outside = ((action < env.action_low - 1e-3) | (action > env.action_high + 1e-3)).any(axis=1)
    edge = (action <= env.action_low + SATURATED * span) | (action >= env.action_high - SATURATED * span)
    detail = (
        f"[{action.min():.4g}, {action.max():.4g}] within [{env.action_low.min():g}, {env.action_high.max():g}], "
        f"{100 * edge.mean():.1f} % at a bound"
    )
    if outside.any():
        return Check("actions", "fail", f"{int(outside.sum())} rows outside the bounds: {detail}")
    return Check("actions", "warn" if edge.mean() > 0.5 else "ok", detail)


def _lengths(raw: RawDataset, env: EnvSpec) -> Check:
    end = np.flatnonzero(raw.terminated | raw.truncated)
    longest = int(np.diff(np.concatenate([[-1], end, [len(raw) - 1]])).max())
    if env.horizon is not None and longest > env.horizon:
        return Check("episode length", "warn", f"longest {longest}, above the environment's horizon {env.horizon}")
    return Check("episode length", "ok", f"longest {longest}, horizon {env.horizon}")


def successor_errors(raw: RawDataset, rows: int) -> NDArray[np.int64]:
    """Rows inside episodes, among the first ``rows``, whose next observation is not the next row's observation."""
    assert raw.next_observations is not None
    observation = np.asarray(raw.observations[slice(1, rows)])
    successor = np.asarray(raw.next_observations[slice(0, rows - 1)])
    inside = ~(raw.terminated | raw.truncated)[: rows - 1]
    return np.flatnonzero(inside & (observation != successor).any(axis=1))
