"""How libraries lay a dataset out in HDF5: D4RL and d3rlpy 1 by columns, d3rlpy 2 and robomimic by episodes."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from o2o_lightning.data.columns import FileColumn, flags, float32, vector, wide
from o2o_lightning.data.guarded import dataset, find, numbers
from o2o_lightning.data.raw import Column, Meaning, Said, wrong
from o2o_lightning.envs.layout import is_image
from o2o_lightning.errors import UserError
from o2o_lightning.limits import allowed

# by D4RL's names, what else a column is called
NAMES = {
    "observations": ("observations", "obs", "observation"),
    "actions": ("actions", "action"),
    "rewards": ("rewards", "reward"),
    "terminals": ("terminals", "terminated", "terminations", "dones", "done"),
    "timeouts": ("timeouts", "truncated", "truncations", "episode_terminals"),
    "next_observations": ("next_observations", "next_obs", "next_observation"),
}
WIDE = ("observations", "actions", "next_observations")
SHOWN = 8


@dataclass
class Arrays:
    """One file's rows in time order, its flags as they are stored."""

    columns: dict[str, Column]  # observations and actions, perhaps next_observations
    rewards: NDArray[np.float32]
    terminals: NDArray[np.bool_]
    timeouts: NDArray[np.bool_] | None
    meaning: Meaning  # of ``terminals``, as far as the layout tells
    cut: NDArray[np.bool_] | None = None  # where the next row belongs to another recording, without a flag for it


def arrays_of(file: h5py.File, path: Path, source: str, said: Said, lazy_bytes: int) -> Arrays:
    """The rows of an opened file, in whichever layout it has.

    Raises:
        UserError: no layout that is known; an array missing or not numeric; parts that could be joined in any order.
    """
    if _demos(file):
        return _robomimic(file, source, said.layout)
    if isinstance(find(file, "observations_0"), h5py.Dataset):
        return _d3rlpy(file, source)
    if find(file, "observations_0_0") is not None:
        raise wrong(source, "its observations are tuples. Join their parts, and dump it again.")
    if isinstance(find(file, "episode_0"), h5py.Group):
        raise wrong(source, "it is the inside of a Minari dataset. Name it as Minari does: minari:ID.")
    return _flat(file, path, source, lazy_bytes)


def _flat(file: h5py.File, path: Path, source: str, lazy_bytes: int) -> Arrays:
    """D4RL's layout, also by other libraries' names."""
    found: dict[str, str] = {}
    for key, others in NAMES.items():
        here = [name for name in others if isinstance(find(file, name), h5py.Dataset)]
        if here:
            found[key] = here[0]
        elif key not in ("timeouts", "next_observations"):
            held = sorted(map(str, file))
            more = f", and {len(held) - SHOWN} more" if len(held) > SHOWN else ""
            raise UserError(
                f"dataset {source}: '{key}' is missing (found: {', '.join(held[:SHOWN]) or 'nothing'}{more}). A "
                "D4RL-style dataset needs observations, actions, rewards and terminals; rename or add the array."
            )
    _continuous(file, found["actions"], source)
    lazy = sum(4 * dataset(file, found[key]).size for key in WIDE if key in found) > lazy_bytes
    columns: dict[str, Column] = {
        key: FileColumn(path, found[key], source) if lazy else wide(file, found[key], source)
        for key in WIDE
        if key in found
    }
    timeouts = flags(file, found["timeouts"], source) if "timeouts" in found else None
    meaning: Meaning = "done" if found["terminals"] in ("dones", "done") else "auto"
    if found["terminals"] in ("terminated", "terminations") or found.get("timeouts") == "episode_terminals":
        meaning = "terminated"
    rewards, terminals = float32(vector(file, found["rewards"], source)), flags(file, found["terminals"], source)
    if found.get("timeouts") == "episode_terminals" and timeouts is not None and timeouts.shape == terminals.shape:
        timeouts = timeouts & ~terminals  # d3rlpy: the end of an episode, whichever
    return Arrays(columns, rewards, terminals, timeouts, meaning)


def _d3rlpy(file: h5py.File, source: str) -> Arrays:
    """d3rlpy 2's ``ReplayBuffer.dump``: numbered arrays, and one flag an episode; one not terminated was cut."""
    total = find(file, "total_size")
    count = int(numbers(total)) if isinstance(total, h5py.Dataset) and total.shape == () else 0
    if not 0 < count <= len(file):
        raise wrong(source, f"'total_size' says {count} episodes, of {len(file)} arrays. Dump it again.")

    def read(key: str, episode: int) -> NDArray[np.float32]:
        place = _there(file, f"{key}_{episode}", source)
        return wide(file, _continuous(file, place, source) if key == "actions" else place, source)

    def ended(episode: int, rows: int) -> NDArray[np.bool_]:
        last = flags(file, _there(file, f"terminated_{episode}", source), source)
        ends: NDArray[np.bool_] = np.arange(rows) == (rows - 1 if last.all() else rows)
        return ends

    return _by_episodes(
        range(count), ("observations", "actions", "rewards"), read, ended, source, "terminated", _most(file)
    )


def _robomimic(file: h5py.File, source: str, layout: tuple[str, ...]) -> Arrays:
    """Robomimic's ``data/demo_I``, with observations by part, successors, and ``dones`` at success or the end."""
    demos = sorted(_demos(file), key=lambda name: int(name.removeprefix("demo_")))
    group = find(file, f"data/{demos[0]}/obs")
    held = {name: dataset(group, name) for name in group} if isinstance(group, h5py.Group) else {}
    vectors = [name for name, part in held.items() if part is not None and not is_image(part.shape[1:], part.dtype)]
    if not set(layout) <= set(vectors) or (not layout and len(vectors) != 1):
        what = f"names {', '.join(layout)}; it has" if layout else "could be joined in any order:"
        raise wrong(
            source,
            f"the observation layout {what} {', '.join(sorted(vectors)) or 'no part that is a vector'}. Name those to "
            "take in your environment's order: --data.observation_layout '[object, robot0_eef_pos]'.",
        )
    chosen = layout or (vectors[0],)
    keys = ["observations", "actions", "rewards"]
    if isinstance(find(file, f"data/{demos[0]}/next_obs"), h5py.Group):
        keys.append("next_observations")

    def read(key: str, demo: int) -> NDArray[np.float32]:
        place, inside = f"data/{demos[demo]}", {"observations": "obs", "next_observations": "next_obs"}.get(key)
        if inside is None:
            return wide(file, _there(file, f"{place}/{key}", source), source)
        parts = [wide(file, _there(file, f"{place}/{inside}/{part}", source), source) for part in chosen]
        return np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)

    def ended(demo: int, rows: int) -> NDArray[np.bool_]:
        return flags(file, _there(file, f"data/{demos[demo]}/dones", source), source)

    return _by_episodes(range(len(demos)), keys, read, ended, source, "done", _most(file))


def _by_episodes(
    episodes: range,
    keys: Sequence[str],
    read: Callable[[str, int], NDArray[np.float32]],
    ended: Callable[[int, int], NDArray[np.bool_]],
    source: str,
    meaning: Meaning,
    most: int,
) -> Arrays:
    """Episodes one after the other; the last row of one that is not terminal is a time-out. At most ``most`` bytes."""
    parts: dict[str, list[NDArray[np.float32]]] = {key: [] for key in keys}
    terminals, timeouts, size = [], [], 0
    for episode in episodes:
        columns = {key: read(key, episode) for key in keys}
        rows = len(columns["rewards"])
        done = ended(episode, rows)
        size += sum(column.nbytes for column in columns.values())
        if size > most:
            raise wrong(
                source, f"episodes 0 to {episode} declare more than a file of its size can hold. Write it again."
            )
        columns["rewards"] = columns["rewards"].reshape(rows, -1)
        for key, column in columns.items():
            first = parts[key][0] if parts[key] else column
            wanted = (rows, *first.shape[1:]) if key != "rewards" else (rows, 1)
            if column.shape != wanted or done.shape != (rows,):
                raise wrong(source, f"'{key}' of episode {episode} has shape {column.shape}, not {wanted}. Repair it.")
            parts[key].append(column)
        terminals.append(done)
        timeouts.append(~done & (np.arange(rows) == rows - 1))
    joined = {key: np.concatenate(column) for key, column in parts.items()}
    rewards = joined.pop("rewards")[:, 0]
    found, cuts = np.concatenate(terminals), np.concatenate(timeouts)
    if meaning == "done":
        return Arrays({**joined}, rewards, found, None, meaning, cuts)
    return Arrays({**joined}, rewards, found, cuts, meaning)


def _most(file: h5py.File) -> int:
    return allowed(file.id.get_filesize())


def _demos(file: h5py.File) -> list[str]:
    data = find(file, "data")
    return [name for name in data if re.fullmatch(r"demo_\d+", name)] if isinstance(data, h5py.Group) else []


def _continuous(file: h5py.File, key: str, source: str) -> str:
    if (kept := dataset(file, key).dtype).kind in "biu":
        raise wrong(source, f"'{key}' holds {kept}: discrete actions? Store continuous ones, as float32.")
    return key


def _there(file: h5py.File, key: str, source: str) -> str:
    if not isinstance(find(file, key), h5py.Dataset):
        raise wrong(source, f"'{key}' is missing. Write the whole dataset again.")
    return key
