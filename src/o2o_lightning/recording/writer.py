"""Writes D4RL-style HDF5 files: whole or not at all, and never over another one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from o2o_lightning.errors import UserError

Block = dict[str, NDArray[Any]]  # columns of neighbouring rows, by their name in the file

_CHUNK_ROWS = 16_384


@contextmanager
def new_hdf5(target: Path) -> Iterator[h5py.File]:
    """A file that is written beside ``target`` and takes its name when the block ends well."""
    part = target.with_name(target.name + ".part")
    try:
        with h5py.File(part, "w") as file:
            yield file
        with part.open("rb") as written:
            os.fsync(written.fileno())
        if target.exists():
            raise UserError(f"{target}: it exists, and nothing is written over. Choose another name.")
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def write_dataset(
    target: Path, rows: int, blocks: Iterable[Block], metadata: Mapping[str, Any], policy: Mapping[str, Any]
) -> None:
    """Writes ``blocks`` in time order, together ``rows`` rows (see :func:`closed`), in D4RL's layout.

    ``metadata`` holds the texts and numbers of the group of that name, ``policy`` those of ``metadata/policy``.
    """
    with new_hdf5(target) as file:
        start = 0
        for block in _aligned(blocks):
            stop = start + len(block["rewards"])
            for key, values in block.items():
                column = file[key] if start else _new_column(file, key, rows, values)
                column[start:stop] = values
            start = stop
        for key, value in metadata.items():
            file[f"metadata/{key}"] = value
        for key, value in policy.items():
            file[f"metadata/policy/{key}"] = value


def _new_column(file: h5py.File, key: str, rows: int, like: NDArray[Any]) -> h5py.Dataset:
    # one column a chunk: neighbouring values are alike, and the shuffle filter makes the most of it
    chunks = (min(_CHUNK_ROWS, rows), *(1 for _ in like.shape[1:]))
    options = {"chunks": chunks, "compression": "gzip", "compression_opts": 9, "shuffle": True}
    return file.create_dataset(key, shape=(rows, *like.shape[1:]), dtype=like.dtype, **options)


def closed(blocks: Iterable[Block]) -> Iterator[Block]:
    """Blocks with D4RL's flags: a time-out wins over a termination, and the last row ends its episode."""
    previous: Block | None = None
    for block in blocks:
        block["terminals"] = block["terminals"] & ~block["timeouts"]
        if previous is not None:
            yield previous
        previous = block
    if previous is not None:
        previous["timeouts"][-1] |= not previous["terminals"][-1]
        yield previous


def _aligned(blocks: Iterable[Block]) -> Iterator[Block]:
    """The same rows in blocks that fill whole chunks of the file, so that none is compressed twice."""
    pending: list[Block] = []
    for block in blocks:
        pending.append(block)
        rows = sum(len(part["rewards"]) for part in pending)
        if rows >= _CHUNK_ROWS:
            whole = rows - rows % _CHUNK_ROWS
            columns = joined(pending)
            yield {key: values[:whole] for key, values in columns.items()}
            pending = [{key: values[whole:] for key, values in columns.items()}] if whole < rows else []
    if pending:
        yield joined(pending)


def joined(blocks: list[Block]) -> Block:
    """Blocks one after the other as one."""
    return {key: np.concatenate([block[key] for block in blocks]) for key in blocks[0]} if blocks[1:] else blocks[0]
