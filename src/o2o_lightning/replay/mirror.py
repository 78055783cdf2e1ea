"""A table's rows in the memory of a device, so that a batch can be gathered without the host."""

from collections.abc import Sequence

import torch

from o2o_lightning.replay.table import Table


class Mirror(Table):
    """A copy of a table on a device, with room for all rows that it will ever have: the memory stays the same.

    The table itself is what is written to, saved and loaded; :meth:`refresh` brings what has changed since.
    """

    def __init__(self, table: Table, device: torch.device) -> None:
        super().__init__(table.layout, torch.empty(table.matrix.shape, device=device))
        self.table, self.seen = table, (-1, 0)
        self._copied: Table | None = None  # the table's caches that are here
        self.refresh()

    def __len__(self) -> int:
        return len(self.table)

    def refresh(self) -> None:
        """Copies the rows that have been written, and the caches that have been attached."""
        table = self.table
        for rows in table.since(self.seen):
            self.matrix[rows].copy_(table.matrix[rows])
        self.seen = table.stamp
        if table.caches is not self._copied:
            self._copied = table.caches
            self.caches = None
            if table.caches is not None:
                self.caches = Table(table.caches.layout, table.caches.matrix.to(self.matrix.device))


def mirror(tables: Sequence[Table], device: torch.device, limit: int) -> bool:
    """Mirrors those of the ``tables`` that are elsewhere, if together they have at most ``limit`` bytes there."""
    away = [table for table in tables if table.matrix.device != device]
    parts = [part for table in away for part in (table, table.caches) if part is not None]
    if sum(part.matrix.nbytes for part in parts) > limit:
        return False
    for table in away:
        if not (isinstance(table.mirror, Mirror) and table.mirror.matrix.device == device):
            table.mirror = Mirror(table, device)
        table.mirror.refresh()
    return True
