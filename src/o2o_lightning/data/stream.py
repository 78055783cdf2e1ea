"""Chunks of batches for the offline phases, and what every batch goes through before a network sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from o2o_lightning.nn.normalizer import Normalizer
from o2o_lightning.replay.rewards import RewardMap
from o2o_lightning.replay.store import nested


class Source(Protocol):
    """What batches are drawn from: a store of transitions, or windows of its episodes."""

    def sample_rows(self, shape: int | Sequence[int], generator: torch.Generator | None = None) -> Tensor:
        """Row numbers (int64) of the given shape."""

    def gather(self, rows: Tensor) -> TensorDict:
        """What belongs to the rows ``[...]``."""


def prepare(batch: TensorDictBase, normalizer: Normalizer, rewards: RewardMap, device: torch.device) -> TensorDictBase:
    """Raw transitions ``[…]`` to what networks take: normalised observations, mapped rewards, float flags, device."""
    columns = dict(batch.items(include_nested=True, leaves_only=True))
    if columns["reward"].device != device:
        columns = {key: column.to(device) for key, column in columns.items()}
    for key in ("observation", ("next", "observation")):
        columns[key] = normalizer(columns[key])
    columns["next", "terminated"] = columns["next", "terminated"].to(columns["reward"].dtype)
    return nested(rewards.mapped(columns), batch.batch_size)


def next_boundary(clock: int, total: int, *cadences: int) -> int:
    """The next count after ``clock`` at which something happens: ``total``, or a multiple of a cadence (0: none)."""
    return min([total, *((clock // every + 1) * every for every in cadences if every > 0)])


def count_chunks(total: int, chunk: int, *cadences: int, start: int = 0) -> int:
    """How many chunks of at most ``chunk`` lead from ``start`` to ``total`` when none crosses a multiple of a cadence.

    At least 1: a stream of nothing would keep Lightning from even starting.
    """
    chunks, clock = 0, start
    while clock < total:
        boundary = next_boundary(clock, total, *cadences)
        chunks += -(-(boundary - clock) // chunk)
        clock = boundary
    return max(chunks, 1)


class OfflineStream:
    """Chunks of K batches ``[K, B]``, uniform with replacement, one gather a chunk.

    ``clock`` tells how many gradient updates the phase has made, so that the last chunk is trimmed to ``total`` and
    a resumed run goes on where it stopped; no chunk crosses a multiple of one of the ``cadences``, those of
    evaluations and measurements. ``complete`` is done to each batch alone, so that its bits do not depend on the chunk.
    """

    def __init__(
        self,
        source: Source,
        transform: Callable[[TensorDictBase], TensorDictBase],
        clock: Callable[[], int],
        total: int,
        batch_size: int,
        chunk: int,
        cadences: Sequence[int],
        generator: torch.Generator,
        complete: Callable[[TensorDictBase], TensorDictBase] = lambda batch: batch,
    ) -> None:
        self.source, self.transform, self.complete, self.clock = source, transform, complete, clock
        self.total, self.batch_size, self.chunk, self.cadences = total, batch_size, chunk, tuple(cadences)
        self.generator = generator
        self.chunks = count_chunks(total, chunk, *cadences, start=clock())

    def __len__(self) -> int:
        return self.chunks

    def __iter__(self) -> Iterator[tuple[TensorDictBase, ...]]:
        while (clock := self.clock()) < self.total:
            updates = min(self.chunk, next_boundary(clock, self.total, *self.cadences) - clock)
            rows = self.source.sample_rows((updates, self.batch_size), self.generator)
            yield tuple(map(self.complete, self.transform(self.source.gather(rows)).unbind(0)))
