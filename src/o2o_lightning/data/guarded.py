"""The one way into an HDF5 file of others: what lies in the file itself, and no more than it can hold."""

import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from o2o_lightning.data.raw import reading, wrong
from o2o_lightning.data.trial import endures
from o2o_lightning.errors import DAMAGED, UserError
from o2o_lightning.limits import SLACK, allowed

LINKS = 8  # that may follow one another
# filters that unpack to more than they are given, and to how many times as much at most
PACKERS = {h5py.h5z.FILTER_DEFLATE: 1032, h5py.h5z.FILTER_LZF: 90}
TRANSIENT = 2**28  # bytes that a chunk may take while it is read, whatever it declares
# by what HDF5 says of a file that it cannot open
_REFUSALS = {
    "Permission denied": "no permission to read {path}. Change its mode or owner.",
    "unable to lock file": "{path} is being written by another process. Wait for its end, or copy a whole file.",
    "truncated file": "{path} is truncated, as by a broken copy or download. Fetch it again.",
}


@contextmanager
def open_hdf5(path: Path, source: str) -> Iterator[h5py.File]:
    """Opens for reading; what fails there, or in the block on damaged bytes, is a one-line :class:`UserError`."""
    if not path.exists():
        raise UserError(
            f"dataset {source}: there is no file at {path}. Check the path, or see `o2o data list` for named datasets."
        )
    if not path.is_file():
        kind = "a directory. Name the .hdf5 file inside it" if path.is_dir() else "no file. Copy it into one"
        raise wrong(source, f"{path} is {kind}.")
    if not endures(path):
        raise wrong(source, "HDF5 comes to no end with it. The file is damaged; copy or download it again.")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        said = f"{error} Permission denied" if isinstance(error, PermissionError) else str(error)
        known = (why for text, why in _REFUSALS.items() if text in said)
        why = next(known, "{path} is not an HDF5 file. Convert it to D4RL's HDF5 layout, or check the path.")
        raise wrong(source, why.format(path=path)) from error
    with file, reading(source, "it cannot be read", "The file is damaged; copy or download it again.", DAMAGED):
        yield file


def find(group: h5py.Group, name: str, links: int = LINKS) -> Any:
    """What ``name`` is in this very file: a dataset or a group; None where there is nothing.

    Raises:
        UserError: another file, or a circle of links, is on the way; it is not opened.
    """
    node = group.file["/"] if name.startswith("/") else group
    for part in filter(lambda part: part not in ("", "."), name.split("/")):
        key = part.encode()
        if not isinstance(node, h5py.Group) or not node.id.links.exists(key):
            return None
        kind = node.id.links.get_info(key).type
        if kind == h5py.h5l.TYPE_HARD:
            node = node[part]
        elif kind == h5py.h5l.TYPE_SOFT and links:
            node = find(node, node.id.links.get_val(key).decode(), links - 1)
        else:
            raise _elsewhere(group, name)
    return node


def dataset(group: h5py.Group, name: str) -> Any:
    """The array ``name``, whose numbers lie in this file and are no more than it can hold; None where there is none.

    Raises:
        UserError: it is empty, kept in other files, or declares more than this one can hold.
    """
    found = find(group, name)
    if not isinstance(found, h5py.Dataset):
        return None
    if found.shape is None:
        raise wrong(group.file.filename, f"'{name}' is empty. Leave it out, or fill it.")
    if found.external or found.is_virtual:
        raise _elsewhere(group, name)
    held = group.file.id.get_filesize()
    values = max(math.prod(shape or ()) for shape in (found.shape, found.chunks))  # a chunk is read whole
    if values * found.dtype.itemsize > allowed(held):
        raise wrong(
            group.file.filename,
            f"'{name}' declares {values:,} values, which a file of {held:,} bytes does not hold. Write it again.",
        )
    if found.chunks is not None and (why := _swelling(found)) is not None:
        raise wrong(group.file.filename, f"'{name}' {why}. Write it again.")
    return found


def numbers(array: h5py.Dataset, rows: slice = slice(None)) -> NDArray[Any]:
    """The values of an array, or of some of its rows."""
    return np.asarray(array[rows] if array.shape else array[()])


def _swelling(array: h5py.Dataset) -> str | None:
    """Why the filters of an array would unpack more than a chunk of it, which HDF5 does not mind; None if they won't.

    It inflates what a chunk holds to its end, and again for each filter: a chunk of few bytes may become gigabytes.
    """
    made = array.id.get_create_plist()
    packers = [number for i in range(made.get_nfilters()) if (number := made.get_filter(i)[0]) in PACKERS]
    if len(packers) > 1:
        return "is compressed twice over"
    if not packers:
        return None
    chunk = math.prod(array.chunks) * array.dtype.itemsize
    large: list[Any] = []
    array.id.chunk_iter(lambda info: large.append(info) if info.size * PACKERS[packers[0]] > TRANSIENT else None)
    for info in large:
        if info.size > 2 * chunk + SLACK:
            return "has chunks that hold more than they declare"
        if packers[0] == h5py.h5z.FILTER_DEFLATE and not info.filter_mask:
            stream = zlib.decompressobj()
            stream.decompress(array.id.read_direct_chunk(info.chunk_offset)[1], 2 * chunk + SLACK)
            if stream.unconsumed_tail:
                return "has chunks that unpack to more than they declare"
    return None


def _elsewhere(group: h5py.Group, name: str) -> UserError:
    return wrong(
        group.file.filename, f"'{name}' lies in other files, which it may not name. Store it in the file itself."
    )
