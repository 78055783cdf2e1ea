"""Reads what ``torch.save`` wrote: whole, tensors and plain values only, in no more memory than the file is large.

``torch.save`` gives each record of its zip archive a CRC-32, which ``torch.load`` never looks at. Here every one is
checked first: a flipped bit, a zeroed block or a cut is found before anything of the file is used.
"""

import io
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor
from torch._weights_only_unpickler import Unpickler

FOLDER = 0x10  # an attribute that no checksum covers


def load(path: str | Path, mmap: bool = False) -> Any:
    """The value of a file that :func:`torch.save` wrote, on the CPU; with ``mmap`` its numbers stay in the file.

    Raises:
        pickle.UnpicklingError: it holds something other than tensors and plain values, of which nothing has run.
        Exception: of any other kind where the file is damaged, or declares more than it holds.
    """
    with Path(path).open("rb") as file:
        _check(file)
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


def _check(file: BinaryIO) -> None:
    size = file.seek(0, io.SEEK_END)
    if not zipfile.is_zipfile(file):
        raise ValueError("it is no archive of torch.save's, or has lost its end")
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        records = {member.filename.partition("/")[2]: member for member in members}
        # of what its attributes call a folder PyTorch reads nothing, and takes memory as it finds it
        strange = any(member.compress_type != zipfile.ZIP_STORED or member.external_attr & FOLDER for member in members)
        if strange or len(records) < len(members):
            raise ValueError("its archive is not as torch.save makes it")
        if sum(member.file_size for member in members) > size:
            raise ValueError("its archive declares more bytes than it has")
        if damaged := archive.testzip():
            raise ValueError(f"the checksum of its record '{damaged}' is another: a part of it has changed")
        declared = {name: member.file_size for name, member in records.items()}
        _check_declared(archive.read(records["data.pkl"]), declared)


def _check_declared(pickled: bytes, records: dict[str, int]) -> None:
    """Goes through the pickled part with storages of no memory: each must fit its record, each tensor its storage.

    A view that repeats its numbers (a stride of 0), or is larger than what it is a view of, takes a thousand times the
    file wherever it is copied.
    """
    storages: dict[str, Any] = {}

    def storage(identity: Any) -> Any:
        _, kind, key, _, count = identity
        if key not in storages:
            dtype = torch.uint8 if kind is torch.UntypedStorage else kind.dtype
            if (size := count * dtype.itemsize) != records[f"data/{key}"]:
                raise ValueError(f"its storage '{key}' declares {size:,} bytes, and has {records[f'data/{key}']:,}")
            untyped = torch.UntypedStorage(size, device="meta")  # type: ignore[no-untyped-call]
            typed = torch.storage.TypedStorage(wrap_storage=untyped, dtype=dtype, _internal=True)  # type: ignore[no-untyped-call]
            storages[key] = typed
        return storages[key]

    unpickler: Any = Unpickler(io.BytesIO(pickled), encoding="utf-8")
    unpickler.persistent_load = storage
    try:
        value = unpickler.load()
    except pickle.UnpicklingError as error:
        raise pickle.UnpicklingError("it holds something other than tensors and plain values") from error
    sizes = {key: records[f"data/{key}"] for key in storages}
    if any(typed._untyped_storage.nbytes() != sizes[key] for key, typed in storages.items()):  # a tensor has grown it
        raise ValueError("it declares a tensor that is larger than its numbers")
    for tensor in _tensors(value):
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ValueError(f"it declares a tensor of shape {tuple(tensor.shape)} that is larger than its numbers")


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in nested containers; one that is met twice, or holds itself, is gone through once."""
    left, seen = [value], set()
    while left:
        item = left.pop()
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, dict | list | tuple | set) and id(item) not in seen:
            seen.add(id(item))
            left.extend(item.values() if isinstance(item, dict) else item)
