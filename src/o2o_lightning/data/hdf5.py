"""Reads D4RL-style HDF5 files with h5py alone."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from o2o_lightning.data.guarded import dataset, find, numbers, open_hdf5
from o2o_lightning.data.raw import Column, RawDataset, reading, recorded_layout, wrong
from o2o_lightning.errors import DAMAGED, UserError
from o2o_lightning.launch import note_once

LAZY_BYTES = 2**29
_WIDE = ("observations", "actions", "next_observations")
_KNOWN = (*_WIDE, "rewards", "terminals", "timeouts")


class FileColumn:
    """An array of an HDF5 file as float32, read slice by slice.

    The file is opened for each read: no handle is held, so it survives forks and the file can be moved or replaced.
    """

    def __init__(self, path: Path, key: str, source: str) -> None:
        self.path, self.key, self.source = path, key, source
        with open_hdf5(path, source) as file:
            self.shape: tuple[int, ...] = tuple(dataset(file, key).shape)

    def __getitem__(self, rows: slice, /) -> NDArray[np.float32]:
        with open_hdf5(self.path, self.source) as file:
            return _read(file, self.key, self.source, rows).astype(np.float32, copy=False)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        array = self[slice(None)]
        return array if dtype is None else array.astype(dtype, copy=False)


class FileInfos(Mapping[str, NDArray[Any]]):
    """The arrays of the ``infos`` group by name, each read from the file when it is asked for."""

    def __init__(self, path: Path, keys: list[str], source: str) -> None:
        self._path, self._source = path, source
        self._keys = {key.removeprefix("infos/"): key for key in keys}

    def __getitem__(self, key: str) -> NDArray[Any]:
        stored = self._keys[key]
        with open_hdf5(self._path, self._source) as file:
            return _read(file, stored, self._source)

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


def read_hdf5(
    path: str | Path,
    *,
    source: str | None = None,
    env_id: str | None = None,
    horizon: int | None = None,
    sha256: str | None = None,
    lazy_bytes: int = LAZY_BYTES,
) -> RawDataset:
    """Reads a D4RL-style file.

    Args:
        path, source: of the file, and what messages and manifests call it, its path by default.
        env_id: Gymnasium id, before the file's own ``metadata/env_id``, and trusted where that is not.
        horizon: step limit that splits episodes where the file has no ``timeouts``; by default that of the env.
        sha256: the file's digest, where the caller has it already.
        lazy_bytes: above this size, wide arrays stay in the file and are read in slices.

    Raises:
        UserError: the path is no readable HDF5 file, or a mandatory array is missing or not numeric.
    """
    path, source = Path(path), source or str(path)
    with open_hdf5(path, source) as file:
        keys = _dataset_keys(file)
        for key in ("observations", "actions", "rewards", "terminals"):
            if key not in keys:
                raise UserError(
                    f"dataset {source}: '{key}' is missing (found: {', '.join(sorted(keys)) or 'nothing'}). A "
                    "D4RL-style dataset needs observations, actions, rewards and terminals; rename or add the array."
                )
        metadata = _metadata(file, keys)
        own_id = metadata.get("env_id")
        wide = {key: dataset(file, key) for key in _WIDE if key in keys}
        lazy = sum(4 * array.size for array in wide.values()) > lazy_bytes
        columns: dict[str, Column] = {
            key: FileColumn(path, key, source) if lazy else np.ascontiguousarray(_read(file, key, source), np.float32)
            for key in wide
        }
        rewards = _vector(file, "rewards", source).astype(np.float32, copy=False)
        terminated = _flags(file, "terminals", source)
        truncated = _flags(file, "timeouts", source) if "timeouts" in keys else None
    if truncated is None:
        horizon = horizon or _env_horizon(env_id or own_id, foreign=not env_id)
        truncated = timeouts_from_horizon(terminated, horizon)
        if horizon is None:
            ends = "only terminal rows end its episodes" if terminated.any() else "it counts as one episode"
            note_once(
                f"dataset {source}: it has no 'timeouts', and no known environment whose time limit could stand in for "
                f"them: {ends}. Pass its env_id, or add the array."
            )
    return RawDataset(
        observations=columns["observations"],
        actions=columns["actions"],
        rewards=rewards,
        terminated=terminated,
        truncated=truncated,
        next_observations=columns.get("next_observations"),
        infos=FileInfos(path, [key for key in keys if key.startswith("infos/")], source),
        metadata=metadata,
        source=source,
        sha256=sha256 or file_sha256(path),
        env_id=env_id or own_id,
        layout=recorded_layout(metadata),
    )


def timeouts_from_horizon(terminated: NDArray[np.bool_], horizon: int | None) -> NDArray[np.bool_]:
    """Time-outs ``[N]`` of a file that has none: at each ``horizon``-th step since the last episode end.

    As D4RL's qlearning convention has it; without a horizon nothing is marked.
    """
    truncated = np.zeros(len(terminated), np.bool_)
    if horizon is not None:
        ends = np.flatnonzero(terminated) + 1
        for start, stop in zip([0, *ends], [*ends, len(terminated)], strict=True):
            truncated[start + horizon - 1 : stop : horizon] = True
    return truncated


def _env_horizon(env_id: Any, foreign: bool) -> int | None:
    """Its registered step limit, without making it; None where unknown, as of a file's own id with a module's name."""
    if not isinstance(env_id, str) or (foreign and ":" in env_id):
        return None
    from o2o_lightning.envs.make import registered

    found = registered(env_id)
    return found.max_episode_steps if found else None


def file_sha256(path: Path) -> str:
    """Hexadecimal digest of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def _dataset_keys(file: h5py.File) -> list[str]:
    keys: list[str] = []
    file.visititems(lambda name, item: keys.append(name) if isinstance(item, h5py.Dataset) else None)
    strange = [name for name in keys if not isinstance(name, str)]
    if strange:
        raise ValueError(f"the name {ascii(strange[0])[:40]} is not UTF-8")
    # links, which no visit shows
    return keys + [name for name in _KNOWN if name not in keys and isinstance(find(file, name), h5py.Dataset)]


def _read(file: h5py.File, key: str, source: str, rows: slice = slice(None)) -> NDArray[Any]:
    with reading(source, f"'{key}' cannot be read", "The file is damaged; copy or download it again.", DAMAGED):
        array = numbers(dataset(file, key), rows)
    if array.dtype.kind not in "biuf" and not key.startswith("infos/"):
        raise wrong(source, f"'{key}' holds {array.dtype}, not numbers. Store it as float32 or bool.")
    return array


def _vector(file: h5py.File, key: str, source: str) -> NDArray[Any]:
    """``[N]``, also where the file has ``[N, 1]``."""
    array = _read(file, key, source)
    return array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array


def _flags(file: h5py.File, key: str, source: str) -> NDArray[np.bool_]:
    array = _vector(file, key, source)
    strange = ~np.isin(array, (0, 1))
    if strange.any():
        row = int(np.argmax(strange)) if strange.ndim == 1 else 0
        raise wrong(source, f"'{key}' must be 0 or 1, and row {row} is {array[row]}. Correct the flags.")
    return array.astype(np.bool_)


def _metadata(file: h5py.File, keys: list[str]) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for key in keys:
        name = key.removeprefix("metadata/")
        # the acting policy's weights live here too, and only small values are provenance
        if name == key or name.startswith("policy/") or not 0 < (file[key].size or 0) <= 64:
            continue
        metadata[name] = _plain(numbers(dataset(file, key)))
    one = metadata.get("env_id")
    if isinstance(one, list) and len(one) == 1:
        metadata["env_id"] = one[0]
    return metadata


def _plain(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
