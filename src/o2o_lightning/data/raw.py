"""A dataset as its source stores it, before any convention of ours is applied, and the checks it must pass.

Shape letters: ``N`` rows in time order, ``S`` observation width, ``A`` action width.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from o2o_lightning.blocks import blocks
from o2o_lightning.errors import UserError

Units = Literal["native", "unit", "clip"]
Meaning = Literal["auto", "terminated", "done"]
Kinds = type[Exception] | tuple[type[Exception], ...]


class Column(Protocol):
    """What the wide arrays must offer: sizes and row slices. A NumPy array does, and a lazy file column too."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: slice, /) -> Any: ...


@dataclass(frozen=True)
class Said:
    """What the user says of a dataset, where it does not say it itself.

    Attributes:
        env_id: the environment it is used for; its step limit splits episodes where the file says nothing of time-outs.
        limit: that step limit, where it is known.
        units: of the actions: the environment's own, ``[-1, 1]``, or its own and clipped by the environment.
        terminals: what they mean: terminations alone, or the end of an episode in either way.
        layout: keys of a dictionary observation in the order to join them.
    """

    env_id: str | None = None
    limit: int | None = None
    units: Units | None = None
    terminals: Meaning = "auto"
    layout: tuple[str, ...] = ()


NOTHING = Said()


@dataclass(frozen=True)
class RawDataset:
    """Rows in time order, episodes one after the other."""

    observations: Column  # [N, S] float32
    actions: Column  # [N, A] float32, in ``units``
    rewards: NDArray[np.float32]  # [N], untransformed
    terminated: NDArray[np.bool_]  # [N], the environment ended the episode, which a time-out in that row leaves so
    truncated: NDArray[np.bool_]  # [N], a time limit or the end of the recording cut it
    next_observations: Column | None  # [N, S] float32; None where the successor is the next row's observation
    infos: Mapping[str, NDArray[Any]] = field(repr=False)  # further arrays of N rows (qpos, …), read when accessed
    metadata: Mapping[str, Any] = field(repr=False)  # provenance, JSON-like values
    source: str  # the dataset spec, as the user wrote it
    sha256: str  # of the file, or of the arrays where there is no single file
    env_id: str | None = None  # in Gymnasium, to evaluate in, where the source names one
    units: Units | None = None  # what actions are counted in, where the source or the user has said it
    parts: tuple[str, ...] = ()  # those of the file that the user has chosen as its columns
    layout: tuple[str, ...] = ()  # parts of a dictionary observation in the columns' order, where the source knows it

    def __len__(self) -> int:
        return self.observations.shape[0]


def wrong(source: str, what: str) -> UserError:
    """The error that says ``what`` is wrong with a dataset."""
    return UserError(f"dataset {source}: {what}")


@contextmanager
def reading(
    source: str, fails: str, remedy: str, kinds: Kinds = Exception, refusal: type[UserError] = UserError
) -> Iterator[None]:
    """Says which step of reading a dataset ``fails``, what the error of one of the ``kinds`` said, and the remedy."""
    try:
        yield
    except kinds as error:
        raise refusal(f"dataset {source}: {fails} ({error}). {remedy}") from error


def validate(raw: RawDataset) -> None:
    """Checks ranks, lengths and finiteness.

    Raises:
        UserError: an empty dataset, an array of wrong shape, or NaN or infinity (naming key and first row).
    """
    check_shapes(raw)
    for key, column in _columns(raw).items():
        _check_finite(raw.source, key, column)


def _columns(raw: RawDataset) -> dict[str, Column]:
    columns: dict[str, Column] = {"observations": raw.observations, "actions": raw.actions, "rewards": raw.rewards}
    columns |= {"terminals": raw.terminated, "timeouts": raw.truncated}
    return columns if raw.next_observations is None else columns | {"next_observations": raw.next_observations}


def check_shapes(raw: RawDataset) -> None:
    """The part of :func:`validate` that reads no data: raises :class:`UserError` for wrong ranks or lengths."""
    source, columns = raw.source, _columns(raw)
    rows = columns["observations"].shape[0] if columns["observations"].shape else 0
    if rows == 0:
        raise wrong(source, "'observations' is empty. Check how the file was written.")
    for key, column in columns.items():
        rank = 2 if key in ("observations", "actions", "next_observations") else 1
        shape = tuple(column.shape)
        if len(shape) != rank:
            if rank == 2 and len(shape) > 3:
                raise wrong(source, f"'{key}' has shape {shape}: images, and the methods here take vectors.")
            wanted = "two axes (rows, width)" if rank == 2 else "one value a row"
            raise wrong(source, f"'{key}' has shape {shape}, and {wanted} is needed. Reshape it.")
        if shape[0] != rows:
            raise UserError(
                f"dataset {source}: '{key}' has {shape[0]} rows, 'observations' has {rows}. "
                "All arrays must have one row a step; the file may be cut or mixed up."
            )
        if 0 in shape:
            raise wrong(source, f"'{key}' has shape {shape}, no columns. Check how it was written.")
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
        raise wrong(source, f"'{key}' has {value} at row {first}. Remove that episode or repair the recording.")


def recorded_layout(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """Parts of a dictionary observation, of ``a,b`` or ``concat(a[4]=…; b[2]=…)``; any other text is a remark."""
    said = metadata.get("obs_layout")
    if not isinstance(said, str):
        return ()
    if said.startswith("concat("):
        return tuple(re.findall(r"(\w+)\[\d+\]", said))
    names = tuple(part.strip() for part in said.split(","))
    return names if all(re.fullmatch(r"\w+", name) for name in names) else ()
