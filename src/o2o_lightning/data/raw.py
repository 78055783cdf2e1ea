"""A dataset as its source stores it, before any convention of ours is applied, and the checks it must pass.

Shape letters: ``N`` rows in time order, ``S`` observation width, ``A`` action width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from o2o_lightning.blocks import blocks
from o2o_lightning.errors import UserError


class Column(Protocol):
    """What the wide arrays must offer: sizes and row slices. A NumPy array does, and a lazy file column too."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: slice, /) -> Any: ...


@dataclass(frozen=True)
class RawDataset:
    """Rows in time order, episodes one after the other.

    Args:
        observations: ``[N, S]`` float32.
        actions: ``[N, A]`` float32, in the simulator's own units.
        rewards: ``[N]`` float32, untransformed.
        terminated: ``[N]`` bool, the environment ended the episode.
        truncated: ``[N]`` bool, a time limit or the end of the recording cut it.
        next_observations: ``[N, S]`` float32, or None where the successor is the next row's observation.
        infos: further arrays of ``N`` rows by name (``qpos``, ``qvel``, ...), read when accessed.
        metadata: provenance, JSON-like values.
        source: the dataset spec, as the user wrote it.
        sha256: digest of the file, or of the arrays where there is no single file.
        env_id: Gymnasium id to evaluate in, where the source names one.
        layout: parts of a dictionary observation in the order of the columns, where the source knows it.
    """

    observations: Column
    actions: Column
    rewards: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    next_observations: Column | None
    infos: Mapping[str, NDArray[Any]] = field(repr=False)
    metadata: Mapping[str, Any] = field(repr=False)
    source: str
    sha256: str
    env_id: str | None = None
    layout: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.observations.shape[0]


def validate(raw: RawDataset) -> None:
    """Checks ranks, lengths and finiteness.

    Raises:
        UserError: an empty dataset, an array of wrong shape, or NaN or infinity (naming key and first row).
    """
    check_shapes(raw)
    for key, column in _columns(raw).items():
        _check_finite(raw.source, key, column)


def _columns(raw: RawDataset) -> dict[str, Column]:
    columns: dict[str, Column] = {
        "observations": raw.observations,
        "actions": raw.actions,
        "rewards": raw.rewards,
        "terminals": raw.terminated,
        "timeouts": raw.truncated,
    }
    if raw.next_observations is not None:
        columns["next_observations"] = raw.next_observations
    return columns


def check_shapes(raw: RawDataset) -> None:
    """The part of :func:`validate` that reads no data: raises :class:`UserError` for wrong ranks or lengths."""
    source, columns = raw.source, _columns(raw)
    rows = columns["observations"].shape[0] if columns["observations"].shape else 0
    if rows == 0:
        raise UserError(f"dataset {source}: 'observations' is empty. Check how the file was written.")
    for key, column in columns.items():
        rank = 2 if key in ("observations", "actions", "next_observations") else 1
        shape = tuple(column.shape)
        if len(shape) != rank:
            wanted = "two axes (rows, width)" if rank == 2 else "one value a row"
            raise UserError(f"dataset {source}: '{key}' has shape {shape}, and {wanted} is needed. Reshape it.")
        if shape[0] != rows:
            raise UserError(
                f"dataset {source}: '{key}' has {shape[0]} rows, 'observations' has {rows}. "
                "All arrays must have one row a step; the file may be cut or mixed up."
            )
        if 0 in shape:
            raise UserError(f"dataset {source}: '{key}' has shape {shape}, no columns. Check how it was written.")
    successor = columns.get("next_observations")
    if successor is not None and successor.shape[1] != columns["observations"].shape[1]:
        raise UserError(
            f"dataset {source}: 'next_observations' has {successor.shape[1]} columns, 'observations' has "
            f"{columns['observations'].shape[1]}. Remove or correct 'next_observations'."
        )


def _check_finite(source: str, key: str, column: Column) -> None:
    for rows in blocks(column.shape[0]):
        finite = np.isfinite(np.asarray(column[rows]))
        if finite.all():
            continue
        bad = ~finite if finite.ndim == 1 else ~finite.all(axis=1)
        first = rows.start + int(np.argmax(bad))
        value = "NaN" if np.isnan(np.asarray(column[slice(first, first + 1)])).any() else "infinity"
        raise UserError(
            f"dataset {source}: '{key}' has {value} at row {first}. Remove that episode or repair the recording."
        )
