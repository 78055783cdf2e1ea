"""Writes D4RL-style HDF5 files, new ones and smaller copies: whole or not at all, and never over another one."""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from o2o_lightning.data.check import successor_errors
from o2o_lightning.data.hdf5 import read_hdf5
from o2o_lightning.data.raw import NOTHING, Said, validate
from o2o_lightning.errors import UserError, at_least
from o2o_lightning.launch import note_once

Block = dict[str, NDArray[Any]]  # columns of neighbouring rows, by their name in the file

_CHUNK_ROWS = 16_384


def write_dataset(
    target: Path, rows: int, blocks: Iterable[Block], metadata: Mapping[str, Any], policy: Mapping[str, Any]
) -> None:
    """Writes ``blocks`` in time order, together ``rows`` rows (see :func:`closed`), in D4RL's layout.

    The file is written beside ``target`` and takes its name when it is whole. ``metadata`` holds the texts and numbers
    of the group of that name, ``policy`` those of ``metadata/policy``.
    """
    part = target.with_name(target.name + ".part")
    try:
        # open columns with room for the chunks that are not full yet: none is compressed twice
        with h5py.File(part, "w", rdcc_nbytes=2**26, rdcc_nslots=10_007) as file:
            columns: dict[str, h5py.Dataset] = {}
            start = 0
            for block in blocks:
                columns = columns or {key: _new_column(file, key, rows, values) for key, values in block.items()}
                stop = start + len(block["rewards"])
                for key, values in block.items():
                    columns[key][start:stop] = values
                start = stop
            for key, value in metadata.items():
                file[f"metadata/{key}"] = value
            for key, value in policy.items():
                file[f"metadata/policy/{key}"] = value
        with part.open("rb") as written:
            os.fsync(written.fileno())
        if target.exists():
            raise UserError(f"{target}: it exists, and nothing is written over. Choose another name.")
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def _new_column(file: h5py.File, key: str, rows: int, like: NDArray[Any]) -> h5py.Dataset:
    # one column a chunk: neighbouring values are alike, and the shuffle filter makes the most of it
    chunks = (min(_CHUNK_ROWS, rows), *(1 for _ in like.shape[1:]))
    options = {"chunks": chunks, "compression": "gzip", "compression_opts": 9, "shuffle": True}
    return file.create_dataset(key, shape=(rows, *like.shape[1:]), dtype=like.dtype, **options)


def closed(blocks: Iterable[Block]) -> Iterator[Block]:
    """Blocks with D4RL's flags: the last row ends its episode."""
    previous: Block | None = None
    for block in blocks:
        if previous is not None:
            yield previous
        previous = block
    if previous is not None:
        previous["timeouts"][-1] |= not previous["terminals"][-1]
        yield previous


def joined(blocks: list[Block]) -> Block:
    """Blocks one after the other as one."""
    return {key: np.concatenate([block[key] for block in blocks]) for key in blocks[0]} if blocks[1:] else blocks[0]


def cut(
    source: str | Path,
    target: str | Path,
    transitions: int | None = None,
    keep_infos: bool = False,
    keep_next: bool = False,
    said: Said = NOTHING,
) -> int:
    """Writes the first ``transitions`` rows of an HDF5 dataset, all by default, and returns their number.

    Without ``keep_next`` each successor is the next row, which is verified first. A last row that ends no episode gets
    ``timeouts = True``. Weights of the acting policy are left out; the other metadata is kept, with the source's
    sha256 and what was cut added.

    Raises:
        UserError: the source is unreadable or invalid, the target exists, or ``next_observations`` are not the next
            rows' observations, so that leaving them out would change the data.
    """
    source, target = Path(source), Path(target)
    if target.exists():
        raise UserError(f"data cut: {target} exists already. Choose another name, or delete it first.")
    if not target.parent.is_dir():
        raise UserError(f"data cut: the folder {target.parent} does not exist. Make it first.")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise UserError(f"data cut: the folder {target.parent} cannot be written to. Choose another.")
    raw = read_hdf5(source, said=said)
    validate(raw)
    rows = len(raw) if transitions is None else min(transitions, len(raw))
    at_least("data cut: --transitions", rows, 1)
    truncated = raw.truncated[:rows].copy()
    truncated[-1] |= not raw.terminated[rows - 1]
    columns: Block = {
        "observations": np.asarray(raw.observations[slice(0, rows)]),
        "actions": np.asarray(raw.actions[slice(0, rows)]),
        "rewards": raw.rewards[:rows],
        "terminals": raw.terminated[:rows],
        "timeouts": truncated,
    }
    dropped, next_dropped = ["metadata/policy"], raw.next_observations is not None and not keep_next
    if next_dropped and len(wrong := successor_errors(raw, rows)):
        raise UserError(
            f"dataset {raw.source}: 'next_observations' of {len(wrong)} rows inside episodes are not the next row's "
            f"observation (first: row {wrong[0]}). Keep them with --keep_next."
        )
    if raw.next_observations is not None and keep_next:
        columns["next_observations"] = np.asarray(raw.next_observations[slice(0, rows)])
    if keep_infos:
        by_row = {key: values for key, values in raw.infos.items() if values.shape[:1] == (len(raw),)}
        columns |= {f"infos/{key}": values[:rows] for key, values in by_row.items()}
        if other := [f"infos/{key}" for key in raw.infos if key not in by_row]:
            dropped += other
            note_once(f"dataset {raw.source}: not one value a row in {', '.join(other)}: left out of the copy")
    elif raw.infos:
        dropped.append("infos")
    if next_dropped:
        dropped.append("next_observations (the next row's observation inside episodes)")
    provenance = {key: value for key, value in raw.metadata.items() if value is not None} | {
        "cut": f"first {rows} of {len(raw)} rows; without {', '.join(dropped)}",
        "terminals": "terminated",
        "cut_source": Path(raw.source).name,
        "cut_source_sha256": raw.sha256,
    }
    if raw.units in ("native", "unit"):
        provenance["action_units"] = raw.units
    write_dataset(target, rows, [columns], provenance, {})
    return rows
