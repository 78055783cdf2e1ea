"""A first look at an HDF5 file in a process of its own: HDF5 can loop for ever, or crash, on damaged structures."""

import contextlib
import os
import resource
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import h5py

from o2o_lightning.limits import limit_address_space

SECONDS, MORE = 10, 2**22  # of processor time, and bytes of a file for one more; 10,000 sound arrays take one
BYTES = 2**30  # of address space, beyond what the process has
SMALL = 2**16  # bytes of an array that is read whole; of a larger one its first and last row


def endures(path: Path) -> bool:
    """Whether HDF5 comes to an end with the structures of a file, well or with an error that Python can tell."""
    stat = path.stat()
    return _endures(str(path.absolute()), stat.st_mtime_ns, stat.st_size)


@cache
def _endures(path: str, changed: int, size: int) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of threads, which the child does not have
        child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):  # the process that asks will meet it, and say it
            _limit(SECONDS + size // MORE)
            with h5py.File(path, "r") as file:
                _walk(file)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def _walk(file: h5py.File) -> None:
    """Everything that can be reached; HDF5's own visitor ends at the first object that is damaged."""
    waiting, seen = [file["/"]], set()
    while waiting:
        item = waiting.pop()
        with contextlib.suppress(Exception):
            if (address := h5py.h5o.get_info(item.id).addr) in seen:
                continue
            seen.add(address)
            _look(item)
            for name in item if isinstance(item, h5py.Group) else ():
                with contextlib.suppress(Exception):
                    if item.get(name, getlink=True).__class__ is h5py.HardLink:
                        waiting.append(item[name])


def _look(item: Any) -> None:
    for key in item.attrs:
        with contextlib.suppress(Exception):
            item.attrs[key]
    with contextlib.suppress(Exception):
        if isinstance(item, h5py.Dataset) and not (item.external or item.is_virtual):
            large = item.shape and item.size * item.dtype.itemsize > SMALL
            _ = (item[:1], item[-1:]) if large else item[()]


def _limit(seconds: int) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    limit_address_space(BYTES)
