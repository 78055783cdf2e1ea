"""Transitions as rows of one float32 matrix: a batch is one gather, and its normalisation two operations.

The matrix is in RAM, a memory-mapped file, or on a device; whatever reads or writes a row goes to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from o2o_lightning.nn.normalizer import Normalizer

Key = str | tuple[str, str]
OBSERVATIONS: tuple[Key, ...] = ("observation", ("next", "observation"))
TERMINATED, TRUNCATED = FLAGS = (("next", "terminated"), ("next", "truncated"))


class Layout:
    """What is where in a row: columns by name, with their widths, None for a scalar."""

    def __init__(self, widths: dict[Key, int | None]) -> None:
        self.widths = widths
        self.parts = [width or 1 for width in widths.values()]
        self.width = sum(self.parts)
        self._constants: tuple[Normalizer, Tensor, Tensor] | None = None

    @classmethod
    def of_transitions(cls, observation_dim: int, action_dim: int, *more: str) -> Layout:
        """Observation, action, reward, successor, two flags that are 0 or 1, and scalars of the names ``more``."""
        step: dict[Key, int | None] = {"observation": observation_dim, "action": action_dim, "reward": None}
        flags: dict[Key, int | None] = dict.fromkeys((TERMINATED, TRUNCATED, *more))
        return cls({**step, ("next", "observation"): observation_dim, **flags})

    def columns(self, rows: Tensor) -> dict[Key, Tensor]:
        """Views of rows ``[…, W]`` by name, ``[…, width]``, and ``[…]`` of a scalar."""
        named = zip(self.widths.items(), torch.split(rows, self.parts, -1), strict=True)
        return {key: part.squeeze(-1) if width is None else part for (key, width), part in named}

    def shown(self, rows: Tensor) -> dict[Key, Tensor]:
        """The same as a user sees them: flags as bool, which are copies."""
        columns = self.columns(rows)
        return columns | {key: columns[key].bool() for key in FLAGS if key in columns}

    def rows(self, batch: TensorDictBase) -> Tensor:
        """The inverse of :meth:`columns`, a copy: of these alone, whatever else is in the batch."""
        shape = (*batch.batch_size, -1)
        return torch.cat([batch.get(key).float().reshape(shape) for key in self.widths], -1)

    def normalize_(self, rows: Tensor, normalizer: Normalizer) -> Tensor:
        """``rows`` ``[…, W]`` with their observations normalised in place, to the bits of ``normalizer`` itself."""
        return self.standardize_(rows, *self.constants(normalizer, rows.device), normalizer.clip)

    def standardize_(self, rows: Tensor, mean: Tensor, scale: Tensor, clip: float | None) -> Tensor:
        """The same by the :meth:`constants` of a normalizer, or of several, in a shape that goes with the rows."""
        rows.sub_(mean).div_(scale)
        if clip is not None:
            for key in OBSERVATIONS:
                self.columns(rows)[key].clamp_(-clip, clip)
        return rows

    def constants(self, normalizer: Normalizer, device: torch.device) -> tuple[Tensor, Tensor]:
        """What is subtracted from a row, and what it is divided by, ``[W]`` each."""
        if self._constants is None or self._constants[0] is not normalizer or self._constants[1].device != device:
            zero, one = torch.zeros(self.width), torch.ones(self.width)
            for row, constant in ((zero, normalizer.mean), (one, normalizer.std + normalizer.eps)):
                for key in OBSERVATIONS:
                    self.columns(row)[key].copy_(constant)
            self._constants = normalizer, zero.to(device), one.to(device)
        return self._constants[1:]


class Table:
    """Rows ``[N, W]`` of a layout, and ``caches``: a second table of columns that a phase adds for its own time.

    ``td_rows`` ``[M]`` (int64, ascending) are those that may be drawn, None for all. ``mirror``: a copy in another
    memory, of which batches are gathered; ``changes`` counts what was written in place.
    """

    mirror: Any = None  # a Mirror
    shared_rows: ClassVar[bool] = False  # whether several seeds have them in one memory

    def __init__(self, layout: Layout, matrix: Tensor) -> None:
        self.layout, self.matrix = layout, matrix
        self.changes = 0
        self.caches: Table | None = None
        self.td_rows: Tensor | None = None

    @classmethod
    def of(cls, columns: dict[str, Tensor], count: int) -> Table:
        """An unwritten table of ``count`` rows for columns like these ``[M, …]``, at most two-dimensional."""
        layout = Layout({key: None if values.ndim == 1 else values.shape[1] for key, values in columns.items()})
        return cls(layout, torch.empty(count, layout.width))

    @property
    def rows(self) -> Tensor:
        """The rows that are in use, a view."""
        return self.matrix

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Key) -> Tensor:
        """A column ``[N, …]``, a view; a flag as bool."""
        column: Tensor = (self.layout.columns(self.rows) | self._cached(slice(None)))[key]
        return column.bool() if key in FLAGS else column

    @property
    def leaves(self) -> TensorDict:
        """All columns by name, caches among them; a single one is cheaper by ``table[key]``."""
        return self.at(slice(None))

    def at(self, index: Any) -> TensorDict:
        """The transitions at any index that a tensor takes: views where it gives views, but for the flags."""
        rows = self.rows[index]
        return nested(self.layout.shown(rows) | self._cached(index), rows.shape[:-1])

    def sample_rows(self, shape: int | Sequence[int], generator: torch.Generator | None = None) -> Tensor:
        """Usable row numbers (int64) of the given shape, uniform with replacement."""
        usable, shape = self.td_rows, (shape,) if isinstance(shape, int) else tuple(shape)
        drawn = torch.randint(len(self) if usable is None else len(usable), shape, generator=generator)
        return drawn if usable is None else usable[drawn]

    def gather(self, rows: Tensor) -> TensorDict:
        """Copies of the transitions at ``rows`` ``[…]`` (int64), caches among them."""
        cached = {} if self.caches is None else self.caches.layout.columns(self.caches.pick(rows))
        return nested(self.layout.shown(self.pick(rows)) | cached, rows.shape)

    def pick(self, rows: Tensor, *cached: str) -> Tensor:
        """The same as rows ``[…, W]``: one gather, and one for each cache that is named, a scalar."""
        rows = rows.to(self.matrix.device)
        picked = torch.embedding(self.matrix, rows)
        return torch.cat((picked, *(self[name][rows].unsqueeze(-1) for name in cached)), -1) if cached else picked

    @property
    def near(self) -> Table:
        """What batches are gathered of: the mirror, where there is one."""
        return self if self.mirror is None else self.mirror

    @property
    def stamp(self) -> tuple[int, int]:
        """How often rows were changed in place, and how many were ever appended."""
        return self.changes, 0

    def since(self, stamp: tuple[int, int]) -> list[slice]:
        """Rows that have been written since the table had this ``stamp``."""
        return [] if stamp == self.stamp else [slice(0, len(self))]

    def put(self, index: Any, columns: dict[Any, Any] | TensorDictBase) -> None:
        """Writes the columns that are given, in place, at any index that a tensor takes."""
        self.changes += 1
        if isinstance(columns, TensorDictBase):
            columns = dict(columns.items(include_nested=True, leaves_only=True))
        own = self.layout.columns(self.rows) | self._cached(slice(None))
        for key, values in columns.items():
            if key in own:
                place = own[key][index]
                own[key][index] = torch.as_tensor(values, dtype=torch.float32, device=place.device).reshape(place.shape)

    def attach(self, name: str, values: Tensor) -> None:
        """Adds a per-transition cache ``[N, …]`` that :meth:`gather` returns as well, replacing an earlier one."""
        if len(values) != len(self):
            raise ValueError(f"cache '{name}' has {len(values)} rows, the table has {len(self)}")
        if name in self.layout.widths:
            raise ValueError(f"'{name}' is a transition's own key and cannot be a cache")
        self._recache({**self._cached(slice(None)), name: values})

    def join(self, caches: Table) -> None:
        """Adds a table of caches ``[N, C]``, as it is where there are none yet."""
        if self.caches is None:
            self.caches = caches
        else:
            self._recache(self._cached(slice(None)) | caches.layout.columns(caches.matrix))

    def detach(self, name: str) -> None:
        """Removes a cache; a name that was never attached is an error."""
        kept = self._cached(slice(None))
        del kept[name]
        self._recache(kept)

    def _recache(self, columns: dict[Any, Tensor]) -> None:
        self.caches = Table.of(columns, len(self)) if columns else None
        if self.caches is not None:
            self.caches.put(slice(None), columns)

    def _cached(self, index: Any) -> dict[Any, Tensor]:
        return {} if self.caches is None else self.caches.layout.columns(self.caches.rows[index])


def pick_of_all(tables: Sequence[Table], numbers: Sequence[Tensor]) -> Tensor:
    """Rows ``[S, …, W]`` of each table by its own ``numbers``; in one gather where their memory is the same."""
    if all(table.matrix is tables[0].matrix for table in tables):
        return tables[0].pick(torch.stack(list(numbers)))
    return torch.stack([table.pick(own) for table, own in zip(tables, numbers, strict=True)])


def nested(columns: dict[Any, Tensor], shape: torch.Size) -> TensorDict:
    """Columns by name, or by ``("next", name)``, as transitions of batch size ``shape``; nothing is checked."""
    own = {key: column for key, column in columns.items() if isinstance(key, str)}
    successor = {key[1]: column for key, column in columns.items() if isinstance(key, tuple)}
    make = TensorDict._new_unsafe
    return make({**own, "next": make(successor, batch_size=shape)}, batch_size=shape)
