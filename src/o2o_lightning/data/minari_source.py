"""Minari datasets, read episode by episode.

TorchRL's own Minari reader returns zeros for local datasets, hence ``minari.load_dataset``.
"""

import hashlib
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from o2o_lightning.data.columns import float32, single
from o2o_lightning.data.ends import ends_of
from o2o_lightning.data.raw import NOTHING, Meaning, RawDataset, Said, reading, wrong
from o2o_lightning.envs.layout import Path, choose_layout, join, leaves
from o2o_lightning.envs.make import registered
from o2o_lightning.errors import reason
from o2o_lightning.launch import note_once

COLUMNS = ("observations", "next_observations", "actions", "rewards", "terminated", "truncated")


def load_minari(spec: str, said: Said = NOTHING) -> RawDataset:
    """Reads ``minari:ID``, downloading it only if it is not in Minari's local store.

    The parts of dictionary observations, which Minari stores by name, are joined as ``layout`` asks, else in their
    space's own order. Each row's successor is its episode's next observation, so all rows have one.

    Without an environment that the user has chosen, what the recorded one had of its own is noted.

    Raises:
        UserError: Minari is not installed, the dataset cannot be fetched, or its spaces cannot be flattened.
    """
    dataset_id = spec.removeprefix("minari:")
    try:
        import minari
    except ImportError as error:
        remedy = "Install it with `pip install 'o2o-lightning[minari]'`."
        raise wrong(spec, f"the package minari is missing. {remedy}") from error
    with reading(spec, "Minari cannot read it", f"Try `minari download -f {dataset_id}`."):
        try:
            dataset = minari.load_dataset(dataset_id)
        except FileNotFoundError:
            dataset = None
    if dataset is None:
        from minari.storage.datasets_root_dir import get_dataset_path

        fails, place = "it is not in Minari's local store and cannot be downloaded", get_dataset_path(dataset_id)
        remedy = f"Check the id with `minari list remote`; without network, copy the dataset to {place}."
        # Minari's hosts fail in the ways of their own clients (requests, google, huggingface): no common base class
        with reading(spec, fails, remedy):
            dataset = minari.load_dataset(dataset_id, download=True)
    raw = _collect(dataset, spec, said)
    if said.env_id is None and raw.env_id is not None:
        _note_differences(dataset.env_spec, spec)
    return raw


def _collect(dataset: Any, spec: str, said: Said = NOTHING) -> RawDataset:
    space, parts = dataset.observation_space, list[tuple[NDArray[Any], ...]]()
    named = isinstance(space, gym.spaces.Dict)
    layout = () if space is None else choose_layout(f"dataset {spec}", space, None, said.layout if named else ())
    paths = [path for path, _ in leaves(space, layout)]
    for episode in _episodes(dataset, spec):
        steps = len(episode.rewards)
        if steps == 0:
            continue
        observations = _flatten(episode.observations, paths, spec)
        rewards, terminated, truncated = map(
            single, map(np.asarray, (episode.rewards, episode.terminations, episode.truncations))
        )
        truncated = truncated.astype(np.bool_)
        # a recording may stop between flags; the next row belongs to another episode all the same
        truncated[-1] |= not terminated[-1]
        rest = float32(rewards), terminated.astype(np.bool_), truncated
        parts.append((observations[:-1], observations[1:], _actions(episode.actions, steps, spec), *rest))
    if not parts:
        raise wrong(spec, "it has no steps. Choose another Minari dataset.")
    arrays = {key: np.concatenate(column) for key, column in zip(COLUMNS, zip(*parts, strict=True), strict=True)}
    digest = hashlib.sha256()
    for array in arrays.values():
        digest.update(np.ascontiguousarray(array).data)
    env_spec = getattr(dataset, "env_spec", None)
    meaning: Meaning = "done" if said.terminals == "done" else "terminated"
    ends = ends_of(spec, arrays["terminated"], arrays["truncated"], meaning, None)
    return RawDataset(
        **{**arrays, **ends._asdict()},
        infos={},
        metadata={"minari_id": dataset.id, "minari_version": str(dataset.minari_version)},
        source=spec,
        sha256=digest.hexdigest(),
        env_id=env_spec.id if env_spec is not None else None,
        units=said.units or "native",
        layout=layout if named else _written_layout(dataset),
    )


def _episodes(dataset: Any, spec: str) -> Iterator[Any]:
    remedy = f"The files are damaged; copy them again, or try `minari download -f {dataset.id}`."
    with reading(spec, "its episodes cannot be read", remedy):  # damaged bytes fail anywhere in Minari and HDF5
        yield from dataset.iterate_episodes()


def _written_layout(dataset: Any) -> tuple[str, ...]:
    """Order of the parts in a dataset of vectors, as `o2o data make` wrote it down."""
    written = dataset.storage.metadata.get("o2o_obs_layout")
    return tuple(written.split(",")) if isinstance(written, str) else ()


def _note_differences(recorded: Any, spec: str) -> None:
    """Says once what the recorded environment had and the registered one of that name has not."""
    here = None if ":" in recorded.id else registered(recorded.id)
    if here is None:
        return
    then, now = ({**each.kwargs, "max_episode_steps": each.max_episode_steps} for each in (recorded, here))
    keys = sorted(({*then} | {*now}) - {"render_mode"})
    other = [key for key in keys if repr(then.get(key)) != repr(now.get(key))]
    if other:
        note_once(
            f"dataset {spec}: it was recorded in {recorded.id} with another {', '.join(other)} than registered here, "
            "where policies will act. Register an environment like the recorded one, and pass its --data.env_id."
        )


def _flatten(observations: Any, paths: list[Path], spec: str) -> NDArray[np.float32]:
    """``[T+1, S]`` from an array or a dictionary of arrays with ``T+1`` rows each."""
    try:
        return join(observations, paths, batch=True)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        remedy = f"The files are damaged; copy them again, or try `minari download -f {spec.removeprefix('minari:')}`."
        raise wrong(spec, f"its observations are not of its own space ({reason(error)}). {remedy}") from error


def _actions(actions: Any, steps: int, spec: str) -> NDArray[np.float32]:
    if not (isinstance(actions, np.ndarray) and actions.dtype.kind == "f"):
        raise wrong(spec, "its actions are not a continuous Box. Choose a dataset that has one.")
    return np.asarray(actions, np.float32).reshape(steps, -1)
