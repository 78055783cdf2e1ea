"""Arrays of an HDF5 file as a dataset's columns: read when asked, as numbers, one value a row where one is meant."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from o2o_lightning.data.guarded import dataset, find, numbers, open_hdf5
from o2o_lightning.data.raw import reading, wrong
from o2o_lightning.errors import DAMAGED


class FileColumn:
    """An array ``[N, W]`` of an HDF5 file as float32, read slice by slice.

    The file is opened for each read: no handle is held, so it survives forks and the file can be moved or replaced.
    """

    def __init__(self, path: Path, key: str, source: str) -> None:
        self.path, self.key, self.source = path, key, source
        with open_hdf5(path, source) as file:
            shape = tuple(dataset(file, key).shape)
        self.shape: tuple[int, ...] = (*shape, 1) if len(shape) == 1 else shape

    def __getitem__(self, rows: slice, /) -> NDArray[np.float32]:
        with open_hdf5(self.path, self.source) as file:
            return wide(file, self.key, self.source, rows)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        array = self[slice(None)]
        return array if dtype is None else array.astype(dtype, copy=False)


class FileInfos(Mapping[str, NDArray[Any]]):
    """The arrays of the ``infos`` group by name, each read from the file when it is asked for."""

    def __init__(self, path: Path, names: list[str], source: str) -> None:
        self._path, self._names, self._source = path, names, source

    def __getitem__(self, key: str) -> NDArray[Any]:
        if key not in self._names:
            raise KeyError(key)
        with open_hdf5(self._path, self._source) as file:
            return _values(dataset(file, f"infos/{key}"), f"infos/{key}", self._source)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def wide(file: h5py.File, key: str, source: str, rows: slice = slice(None)) -> NDArray[np.float32]:
    """``[N, W]`` float32, or the ``rows`` of it; also where the file has ``[N]``."""
    array = float32(_numeric(file, key, source, rows))
    return array[:, None] if array.ndim == 1 else array


def vector(file: h5py.File, key: str, source: str) -> NDArray[Any]:
    """``[N]``, also where the file has ``[N, 1]``."""
    return single(_numeric(file, key, source))


def flags(file: h5py.File, key: str, source: str) -> NDArray[np.bool_]:
    """``[N]`` bool, of any numbers that are 0 or 1."""
    array = vector(file, key, source)
    strange = ~np.isin(array, (0, 1))
    if strange.any():
        row = int(np.argmax(strange)) if strange.ndim == 1 else 0
        value = array[row] if array.ndim else array
        raise wrong(source, f"'{key}' must be 0 or 1, and row {row} is {value}. Correct the flags.")
    return array.astype(np.bool_)


def single(array: NDArray[Any]) -> NDArray[Any]:
    """``[N]`` of an array ``[N, 1]``; others as they are."""
    return array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array


def float32(array: NDArray[Any]) -> NDArray[np.float32]:
    """``array`` as float32; what that does not reach is infinite, which :func:`validate` names."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array, np.float32) if array.ndim else array.astype(np.float32)


def names(group: Any) -> list[str]:
    """The arrays of a group and of those inside it; none without a group."""
    found: list[str] = []
    if isinstance(group, h5py.Group):
        group.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
    strange = [name for name in found if not isinstance(name, str)]
    if strange:
        raise ValueError(f"the name {ascii(strange[0])[:40]} is not UTF-8")
    return found


def _numeric(file: h5py.File, key: str, source: str, rows: slice = slice(None)) -> NDArray[Any]:
    array = dataset(file, key) if rows == slice(None) else find(file, key)  # some rows: of one that was looked at
    if array.dtype.kind not in "biuf":
        raise wrong(source, f"'{key}' holds {array.dtype}, not numbers. Store it as float32 or bool.")
    return _values(array, key, source, rows)


def _values(array: h5py.Dataset, key: str, source: str, rows: slice = slice(None)) -> NDArray[Any]:
    with reading(source, f"'{key}' cannot be read", "The file is damaged; copy or download it again.", DAMAGED):
        return numbers(array, rows)
