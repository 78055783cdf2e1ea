"""Makes a smaller copy of a dataset file, with its provenance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from o2o_lightning.data.check import successor_errors
from o2o_lightning.data.hdf5 import FileInfos, read_hdf5
from o2o_lightning.data.raw import RawDataset, validate
from o2o_lightning.errors import UserError
from o2o_lightning.notes import note_once
from o2o_lightning.recording.writer import Block, write_dataset


def cut(
    source: str | Path,
    target: str | Path,
    transitions: int | None = None,
    keep_infos: bool = False,
    keep_next: bool = False,
    notes: dict[str, str] | None = None,
) -> int:
    """Writes the first ``transitions`` rows of an HDF5 dataset, all by default, and returns their number.

    Without ``keep_next`` each successor is the next row, which is verified first. A last row that ends no episode gets
    ``timeouts = True``. Weights of the acting policy are left out; the other metadata is kept, with the source's
    sha256, what was cut, and ``notes`` (key to text) added.

    Raises:
        UserError: the source is unreadable or invalid, the target exists, or ``next_observations`` are not the next
            rows' observations, so that leaving them out would change the data.
    """
    source, target = Path(source), Path(target)
    if target.exists():
        raise UserError(f"data cut: {target} exists already. Choose another name, or delete it first.")
    if not target.parent.is_dir():
        raise UserError(f"data cut: the folder {target.parent} does not exist. Make it first.")
    raw = read_hdf5(source)
    validate(raw)
    if transitions is not None and transitions < 1:
        raise UserError(f"data cut: --transitions is {transitions}, and at least 1 is needed.")
    rows = len(raw) if transitions is None else min(transitions, len(raw))
    if raw.next_observations is not None and not keep_next:
        _check_successors(raw, rows)
    truncated = raw.truncated[:rows].copy()
    truncated[-1] |= not raw.terminated[rows - 1]

    provenance = _provenance(raw, rows, keep_infos, keep_next, notes or {})
    write_dataset(target, rows, [_arrays(raw, rows, truncated, keep_infos, keep_next)], provenance, {})
    return rows


def _check_successors(raw: RawDataset, rows: int) -> None:
    wrong = successor_errors(raw, rows)
    if len(wrong):
        raise UserError(
            f"dataset {raw.source}: 'next_observations' of {len(wrong)} rows inside episodes are not the next row's "
            f"observation (first: row {wrong[0]}). Keep them with --keep_next."
        )


def _arrays(raw: RawDataset, rows: int, truncated: NDArray[np.bool_], keep_infos: bool, keep_next: bool) -> Block:
    first = slice(0, rows)
    arrays: Block = {
        "observations": np.asarray(raw.observations[first]),
        "actions": np.asarray(raw.actions[first]),
        "rewards": raw.rewards[first],
        "terminals": raw.terminated[first],
        "timeouts": truncated,
    }
    if keep_next and raw.next_observations is not None:
        arrays["next_observations"] = np.asarray(raw.next_observations[first])
    if keep_infos:
        arrays |= {f"infos/{key}": raw.infos[key][:rows] for key in raw.infos if _by_row(raw, key)}
    return arrays


def _by_row(raw: RawDataset, key: str) -> bool:
    return raw.infos[key].shape[:1] == (len(raw),)


def _provenance(
    raw: RawDataset, rows: int, keep_infos: bool, keep_next: bool, notes: dict[str, str]
) -> dict[str, object]:
    dropped = ["metadata/policy"]
    if not keep_infos and isinstance(raw.infos, FileInfos) and len(raw.infos):
        dropped.append("infos")
    if keep_infos and (other := [f"infos/{key}" for key in raw.infos if not _by_row(raw, key)]):
        dropped += other
        note_once(f"dataset {raw.source}: not one value a row in {', '.join(other)}: left out of the copy")
    if not keep_next and raw.next_observations is not None:
        dropped.append("next_observations (the next row's observation inside episodes)")
    kept = {key: value for key, value in raw.metadata.items() if value is not None}
    return {
        **kept,
        "cut": f"first {rows} of {len(raw)} rows; without {', '.join(dropped)}",
        "cut_source": Path(raw.source).name,
        "cut_source_sha256": raw.sha256,
        **notes,
    }
