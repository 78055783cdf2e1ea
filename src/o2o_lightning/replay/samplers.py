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
Numbers = tuple[Tensor, ...]


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

    def numbers(self, tables: Sequence[Table], count: int, generator: torch.Generator) -> Numbers:
        """The rows of one batch for training, by number, from the run's generator: those of each draw apart."""
        return (tables[0].sample_rows(count, generator),)

    def pick(self, tables: Sequence[Table], numbers: Numbers) -> Tensor:
        """The rows ``[B, W]`` of those ``numbers``."""
        return tables[0].pick(numbers[0])

    def rows(self, tables: Sequence[Table], count: int, generator: torch.Generator) -> Tensor:
        """One batch ``[B, W]`` for training."""
        return self.pick(tables, self.numbers(tables, count, generator))

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

    Training's offline part is drawn for sixteen batches at once; ``cached`` names what a phase adds to the dataset, and
    the ring has as columns of its own. ``share`` of a batch is offline; None: the dataset's share of all transitions,
    at the time.
    """

    def __init__(self, store: TransitionStore, *cached: str, share: float | None = 0.5) -> None:
        self.store, self.cached, self.share = store, cached, share
        self._drawn: list[Tensor] = []  # those that come next last

    def draw(self, tables: Sequence[Table], count: int) -> Tensor:
        store, ring = tables
        online = count - self.offline(count, ring) if len(ring) else 0
        drawn = [ring.sample_rows(online, self._rng) + len(store)] if online else []
        return torch.cat([*drawn, store.sample_rows(count - online, self._rng)])

    def numbers(self, tables: Sequence[Table], count: int, generator: torch.Generator) -> Numbers:
        ring = tables[1]
        offline = self.offline(count, ring)
        online = ring.sample_rows(count - offline, generator)
        if not self._drawn or len(self._drawn[-1]) != offline:
            self._keep(self.store.sample_rows((BLOCK, offline), generator))
        return online, self._drawn.pop()

    def pick(self, tables: Sequence[Table], numbers: Numbers) -> Tensor:
        (store, ring), (online, offline) = tables, numbers
        return torch.cat((ring.pick(online), store.pick(offline, *self.cached)))

    def offline(self, count: int, ring: Table) -> int:
        """How many of ``count`` transitions are the dataset's."""
        known = self.store.td_count
        return int(count * (known / (known + len(ring)) if self.share is None else self.share))

    def state_dict(self) -> dict[str, Any]:
        rows = [*reversed(self._drawn)]
        return {"rows": torch.stack(rows) if rows else torch.empty(0, 0, dtype=torch.int64)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._keep(state_dict["rows"])

    def _keep(self, rows: Tensor) -> None:
        self._drawn = [*reversed(rows.unbind())]
