"""Makes a smaller copy of a dataset file, with its provenance."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from o2o_lightning.data.check import successor_errors
from o2o_lightning.data.hdf5 import read_hdf5
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
    if next_dropped:
        _check_successors(raw, rows)
    elif raw.next_observations is not None:
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
        "cut_source": Path(raw.source).name,
        "cut_source_sha256": raw.sha256,
        **(notes or {}),
    }
    write_dataset(target, rows, [columns], provenance, {})
    return rows


def _check_successors(raw: RawDataset, rows: int) -> None:
    wrong = successor_errors(raw, rows)
    if len(wrong):
        raise UserError(
            f"dataset {raw.source}: 'next_observations' of {len(wrong)} rows inside episodes are not the next row's "
            f"observation (first: row {wrong[0]}). Keep them with --keep_next."
        )
