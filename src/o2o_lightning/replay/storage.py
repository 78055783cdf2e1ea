"""Tables as TorchRL's storage, and the writer that goes round their ring."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import RoundRobinWriter, TensorStorage
from torchrl.data.replay_buffers import Storage

from o2o_lightning.replay.ring import Ring
from o2o_lightning.replay.table import Table


class Tables(Storage):  # type: ignore[misc]
    """One table behind another as a storage of TorchRL's: the dataset, the online ring, or both in this order.

    Rows of a single table come as views where the index allows, as TorchRL's do; of two tables they are copies.
    """

    def __init__(self) -> None:
        super().__init__(0)
        self.hold()

    def hold(self, *tables: Table) -> None:
        """Takes other tables."""
        self.tables = tables
        self.max_size = sum(len(table.matrix) for table in tables)

    @property
    def ring(self) -> Ring | None:
        """The table that is written to."""
        last = self.tables[-1] if self.tables else None
        return last if isinstance(last, Ring) else None

    @property
    def start(self) -> int:
        """The ring's first row, as an index of all."""
        return sum(map(len, self.tables[:-1]))

    def __len__(self) -> int:
        return sum(map(len, self.tables))

    def get(self, index: Any) -> TensorDict:
        if len(self.tables) == 1:
            return self.tables[0].at(index)
        layout, rows = self.tables[0].layout, self._numbers(index)
        found = torch.empty(*rows.shape, layout.width)
        for table, chosen, own in self._split(rows):
            found[chosen] = table.pick(own)[..., : layout.width].to(found.device)
        return Table(layout, found).leaves

    def set(self, index: Any, data: Any, *, set_cursor: bool = True) -> None:
        """Writes rows in place, or those of their columns that ``data`` has, and tells whoever has drawn them."""
        rows = self._numbers(index)
        for table, chosen, own in self._split(rows):
            table.put(own, data[chosen])
        for buffer in self._attached_entities:
            buffer.mark_update(rows)

    def state_dict(self) -> dict[str, Any]:
        """That of a plain ``TensorStorage`` of the same rows."""
        return dict(TensorStorage(self.get(slice(None))).state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._load(TensorDict().load_state_dict(state_dict["_storage"], strict=False)[: state_dict["_len"]])

    def dumps(self, path: str | Path) -> None:
        """The files of a plain ``TensorStorage`` of the same rows."""
        plain = TensorStorage(self.get(slice(None)))
        plain._set_last_cursor(len(self) - 1)  # or it warns that it has not seen the writes
        plain.dumps(path)

    def loads(self, path: str | Path) -> None:
        count = json.loads((Path(path) / "storage_metadata.json").read_text())["len"]
        self._load(TensorDict.load_memmap(path)[:count])

    def contains(self, item: int) -> bool:
        return -len(self) <= item < len(self)

    def _empty(self) -> None:
        for table in self.tables:
            if isinstance(table, Ring):
                table.clear()

    def _load(self, rows: TensorDictBase) -> None:
        new = len(rows) - self.start
        if not (0 <= new <= self.ring.capacity if self.ring else new == len(self) - self.start):
            raise ValueError(f"{len(rows)} rows were saved, which does not fit {len(self)} of at most {self.max_size}")
        if self.ring:
            self.ring.size = new
        self.set(slice(None), rows)

    def _numbers(self, index: Any) -> Tensor:
        # what a sampler drew is a tensor of them; ReplayBuffer turns a user's into an array
        return index if isinstance(index, Tensor) and index.dtype == torch.int64 else torch.arange(len(self))[index]

    def _split(self, rows: Tensor) -> Iterator[tuple[Table, Tensor, Tensor]]:
        """Each table with a mask of the ``rows`` that are its own, and their numbers in it."""
        start = 0
        for table in self.tables:
            chosen = (rows >= start) & (rows < start + len(table))
            yield table, chosen, rows[chosen] - start
            start += len(table)


class RingWriter(RoundRobinWriter):  # type: ignore[misc]
    """Round robin over the ring; a dataset's rows stay, and may only be set one by one."""

    def add(self, data: TensorDictBase) -> int:
        return int(self.extend(data.unsqueeze(0)))

    def extend(self, data: TensorDictBase) -> Tensor:
        if self._ring is None:
            raise RuntimeError("This phase learns from a dataset alone, and nothing can be added to one.")
        index: Tensor = self._ring.extend(data) + self._storage.start
        self._mark_update_entities(index)
        return index

    @property
    def _cursor(self) -> int:
        return 0 if self._ring is None else int(self._storage.start + self._ring.cursor)

    @_cursor.setter
    def _cursor(self, value: int) -> None:
        if self._ring is not None:
            self._ring.cursor = (value - self._storage.start) % self._ring.capacity

    @property
    def _write_count(self) -> int:
        return 0 if self._ring is None else self._ring.written

    @_write_count.setter
    def _write_count(self, value: int) -> None:
        if self._ring is not None:
            self._ring.written = value

    @property
    def _ring(self) -> Ring | None:
        return cast(Tables, self._storage).ring if self._storage is not None else None

    def _empty(self, empty_write_count: bool = True) -> None:
        if empty_write_count:
            self._write_count = 0
