"""Off2On's balanced replay: the dataset and the online rows in one draw, by priorities that the method sets."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from o2o_lightning.errors import UserError
from o2o_lightning.replay.ring import Ring
from o2o_lightning.replay.samplers import Numbers, Uniform
from o2o_lightning.replay.store import TransitionStore
from o2o_lightning.replay.sum_tree import IntArray, SumTree
from o2o_lightning.replay.table import Table

UNIT = 1000  # online rows that have the first share together


@dataclass(frozen=True)
class Entry:
    """The priority of a row that has just been written.

    Args:
        rule: the ``largest`` priority that there ever was, as the released code has it, or the ``mean`` of the online
            rows so far (D53).
        share: of the draws that the first thousand online rows have together before they are drawn.
    """

    rule: Literal["largest", "mean"] = "largest"
    share: float = 0.5


class Balanced(Uniform):
    """Rows in proportion to their priorities; dataset rows have 1 until they are drawn.

    Batches of training have three equal parts: one by priority, uniform rows of the dataset, uniform online rows.
    """

    def __init__(self, store: TransitionStore, ring: Ring, entry: Entry) -> None:
        if not 0.0 < entry.share < 1.0:
            raise UserError(f"--data.entry.share {entry.share}: it must lie between 0 and 1.")
        self.store, self.ring, self.entry = store, ring, entry
        self.tree = SumTree(len(store) + ring.capacity)
        self.tree.set(np.arange(len(store)) if store.td_rows is None else store.td_rows.numpy(), 1.0)
        self.largest = store.td_count * entry.share / ((1.0 - entry.share) * UNIT)
        self.written = 0  # online rows that have a priority
        self.drawn: IntArray = np.empty(0, np.int64)

    def draw(self, tables: Sequence[Table], count: int) -> Tensor:
        return torch.from_numpy(self._by_priority(count, self._rng))

    def numbers(self, tables: Sequence[Table], count: int, generator: torch.Generator) -> Numbers:
        """By priority, of all tables one behind the other; uniform ones of the dataset; and of the ring: each B."""
        self.drawn = self._by_priority(count, generator)
        uniform = (table.sample_rows(count, generator) for table in (self.store, self.ring))
        return torch.from_numpy(self.drawn), *uniform

    def pick(self, tables: Sequence[Table], numbers: Numbers) -> Tensor:
        """One batch ``[3·B, W]`` for training."""
        store, ring = self.store, self.ring
        drawn, first = numbers[0], len(store)
        mine = drawn < first
        found = torch.empty(len(drawn), ring.layout.width, device=store.matrix.device)
        found[mine], found[~mine] = store.pick(drawn[mine]), ring.pick(drawn[~mine] - first).to(found.device)
        uniform = store.pick(numbers[1]), ring.pick(numbers[2])
        return torch.cat((found, *(part.to(found.device) for part in uniform)))

    def prioritize(self, priority: Tensor) -> dict[str, Tensor]:
        """Gives the rows of the last batch their priorities ``[count]``, and says how it was composed."""
        weights = np.nan_to_num(priority.detach().double().cpu().numpy(), nan=1.0)
        self.tree.set(self.drawn, weights)
        self.largest = max(self.largest, float(weights.max()))
        online = torch.from_numpy(self.drawn >= len(self.store)).float()
        return {"online_share": online, "largest_priority": torch.tensor(self.largest)}

    def state_dict(self) -> dict[str, Any]:
        """Priorities of the dataset's rows, and of the online ones from the oldest on."""
        weights = np.concatenate((self.tree[: len(self.store)], self.tree[self._by_age()]))
        return {
            "priorities": torch.from_numpy(weights),
            "largest": self.largest,
            "pending": self.ring.written - self.written,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        numbers = np.concatenate((np.arange(len(self.store)), self._by_age()))
        self.tree.set(numbers, state_dict["priorities"].numpy())
        self.largest, self.written = state_dict["largest"], self.ring.written - state_dict["pending"]

    def _by_age(self) -> IntArray:
        """Numbers of the online rows, the oldest first."""
        ring = self.ring
        oldest = ring.cursor if len(ring) == ring.capacity else 0
        return len(self.store) + (oldest + np.arange(len(ring))) % ring.capacity

    def _by_priority(self, count: int, generator: torch.Generator) -> IntArray:
        """One of each of ``count`` equal parts of all priorities, drawn again until no row has none."""
        self._admit()
        while True:
            places = np.arange(count) + torch.rand(count, generator=generator, dtype=torch.float64).numpy()
            numbers = self.tree.find(places * (self.tree.total / count))
            if self.tree[numbers].all():
                return numbers

    def _admit(self) -> None:
        """Lets in what has been written since."""
        new = min(self.ring.written - self.written, self.ring.capacity)
        if new:
            rows, seen = len(self.store) + (self.ring.cursor - 1 - np.arange(new)) % self.ring.capacity, self._by_age()
            known = self.tree[seen[:-new]]
            mean = self.entry.rule == "mean" and len(known)
            self.tree.set(rows, float(known.mean()) if mean else self.largest)
        self.written = self.ring.written
