"""A table's rows in the memory of a device, so that a batch can be gathered without the host."""

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from o2o_lightning.replay.table import Table


@dataclass(eq=False)
class Copied:
    """Rows in the host's memory, which is no other table's while this lives, and on a device."""

    away: Tensor
    there: Tensor


# By their address and device, for as long as there are mirrors: several seeds have one dataset, and one copy of it
COPIED: WeakValueDictionary[tuple[int, torch.device], Copied] = WeakValueDictionary()


class Mirror(Table):
    """A copy of a table on a device, with room for all rows that it will ever have: the memory stays the same.

    The table itself is what is written to, saved and loaded; :meth:`refresh` brings what has changed since.
    """

    def __init__(self, table: Table, device: torch.device) -> None:
        copied = COPIED.get(place := (table.matrix.data_ptr(), device))
        self.seen = (-1, 0) if copied is None else table.stamp
        if copied is None:
            copied = COPIED[place] = Copied(table.matrix, torch.empty(table.matrix.shape, device=device))
        super().__init__(table.layout, copied.there)
        self.table, self._rows = table, copied
        self._copied: Table | None = None  # the table's caches that are here
        self.refresh()

    def __len__(self) -> int:
        return len(self.table)

    def refresh(self) -> None:
        """Copies the rows that have been written, those of caches too, and the caches that have been attached."""
        table, own, copied = self.table, self.caches, self._copied
        written = table.since(self.seen)
        self.seen, self._copied = table.stamp, table.caches
        for rows in written:
            self.matrix[rows].copy_(table.matrix[rows])
        if table.caches is None:
            self.caches = None
        elif own is None or table.caches.matrix.shape != own.matrix.shape:
            self.caches = Table(table.caches.layout, table.caches.matrix.to(self.matrix.device))
        else:  # in the memory that recordings know
            own.layout = table.caches.layout
            for rows in written if table.caches is copied else (slice(None),):
                own.matrix[rows].copy_(table.caches.matrix[rows])


def mirror(tables: Sequence[Table], device: torch.device, limit: int, seeds: int = 1) -> bool:
    """Mirrors those of the ``tables`` that are elsewhere; False where there is no room for them.

    Together, those of all ``seeds``, they may have ``limit`` bytes there; of a dataset's rows there is one copy.
    """
    away = [table for table in tables if table.matrix.device != device]
    size = sum(table.matrix.nbytes * (1 if table.shared_rows else seeds) for table in away)
    size += sum(table.caches.matrix.nbytes * seeds for table in away if table.caches is not None)
    if size > limit:
        return False
    try:
        for table in away:
            if not (isinstance(table.mirror, Mirror) and table.mirror.matrix.device == device):
                table.mirror = Mirror(table, device)
            table.mirror.refresh()
    except torch.OutOfMemoryError:  # a card that is small, or in use
        for table in away:
            table.mirror = None
        return False
    return True
