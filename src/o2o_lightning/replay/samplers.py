"""How batches are drawn of a run's tables: TorchRL's samplers, which also serve training."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchrl.data.replay_buffers import Sampler

from o2o_lightning.replay.storage import Tables
from o2o_lightning.replay.store import TransitionStore
from o2o_lightning.replay.table import Table

BLOCK = 16  # batches


class Uniform(Sampler):  # type: ignore[misc]
    """Every usable row alike, with replacement."""

    def sample(self, storage: Tables, batch_size: int) -> tuple[Tensor, dict[str, Any]]:
        if not len(storage):
            raise RuntimeError("Cannot sample from an empty storage.")
        return self.draw(storage.tables, batch_size), {}

    def draw(self, tables: Sequence[Table], count: int) -> Tensor:
        """Row numbers for a user, from the buffer's own generator: training's numbers do not change by it."""
        if len(tables) == 1:
            return tables[0].sample_rows(count, self._rng)
        return torch.randint(sum(map(len, tables)), (count,), generator=self._rng)

    def rows(self, tables: Sequence[Table], count: int, generator: torch.Generator) -> Tensor:
        """One batch ``[B, W]`` for training, from the run's generator."""
        return tables[0].pick(tables[0].sample_rows(count, generator))

    def state_dict(self) -> dict[str, Any]:
        """What has been drawn for training and not yet used."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""

    def dumps(self, path: str | Path) -> None:
        Path(path).mkdir(exist_ok=True)
        torch.save(self.state_dict(), Path(path) / "drawn.pt")

    def loads(self, path: str | Path) -> None:
        self.load_state_dict(torch.load(Path(path) / "drawn.pt", weights_only=True))

    def _empty(self) -> None:
        """Nothing is kept of the ring."""


class Mixed(Uniform):
    """Online and offline transitions, in that order; offline ones alone before the first step.

    Training's offline part is drawn and gathered for sixteen batches at once, since the dataset hardly ever changes;
    ``cached`` names what a phase adds to it, and the ring has as columns of its own. ``share`` of a batch is offline;
    None: the dataset's share of all transitions, at the time.
    """

    def __init__(self, store: TransitionStore, *cached: str, share: float | None = 0.5) -> None:
        self.store, self.cached, self.share = store, cached, share
        self._drawn = torch.empty(0, 0, dtype=torch.int64)
        self._parts: list[Tensor] = []  # of the rows drawn, those that come next last

    def draw(self, tables: Sequence[Table], count: int) -> Tensor:
        store, ring = tables
        online = count - self.offline(count, ring) if len(ring) else 0
        drawn = [ring.sample_rows(online, self._rng) + len(store)] if online else []
        return torch.cat([*drawn, store.sample_rows(count - online, self._rng)])

    def rows(self, tables: Sequence[Table], count: int, generator: torch.Generator) -> Tensor:
        ring = tables[1]
        offline = self.offline(count, ring)
        online = ring.pick(ring.sample_rows(count - offline, generator))
        if not self._parts or len(self._parts[-1]) != offline:
            self._gather(self.store.sample_rows((BLOCK, offline), generator))
        return torch.cat((online, self._parts.pop()))

    def offline(self, count: int, ring: Table) -> int:
        """How many of ``count`` transitions are the dataset's."""
        known = self.store.td_count
        return int(count * (known / (known + len(ring)) if self.share is None else self.share))

    def mark_update(self, index: Any, *, storage: Any = None) -> None:
        self._gather(self._left())

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self._left().clone()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._gather(state_dict["rows"])

    def _left(self) -> Tensor:
        return self._drawn[len(self._drawn) - len(self._parts) :]

    def _gather(self, rows: Tensor) -> None:
        self._drawn = rows
        self._parts = [*self.store.pick(rows, *self.cached)][::-1]
