"""Chunks of batches for the offline phases, and what every batch goes through before a network sees it."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from o2o_lightning.nn.normalizer import Normalizer
from o2o_lightning.replay.rewards import RewardMap
from o2o_lightning.replay.table import TRUNCATED, Key, Layout, nested


def prepare_rows(rows: Tensor, layout: Layout, normalizer: Normalizer, rewards: RewardMap) -> dict[Key, Tensor]:
    """Raw rows ``[…, W]`` to what networks take, in place and by name: normalised observations, mapped rewards."""
    return named(layout.normalize_(rows, normalizer), layout, rewards)


def named(rows: Tensor, layout: Layout, rewards: RewardMap) -> dict[Key, Tensor]:
    """Normalised rows ``[…, W]`` by name, their rewards mapped in place."""
    columns = layout.columns(rows)
    rewards.map_(columns["reward"])
    return columns


def prepare(batch: TensorDictBase, normalizer: Normalizer, rewards: RewardMap, device: torch.device) -> TensorDictBase:
    """The same of transitions ``[…]`` by name, on a device: ``terminated`` becomes a float, caches stay as they are."""
    layout = Layout.of_transitions(*(batch[key].shape[-1] for key in ("observation", "action")))
    columns = {key: column.to(device) for key, column in batch.items(include_nested=True, leaves_only=True)}
    prepared = prepare_rows(layout.rows(batch).to(device), layout, normalizer, rewards)
    return nested({**columns, **prepared, TRUNCATED: columns[TRUNCATED]}, batch.batch_size)


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


class Chunks:
    """How many steps of a clock come next, until it shows ``total``.

    A chunk has at most ``chunk`` of them and never crosses a multiple of one of the ``cadences`` (those of evaluations
    and measurements) so that these, checkpoints and the end fall on exact steps whatever its size. ``clock`` tells how
    many steps there have been: a resumed run goes on where it stopped.
    """

    def __init__(self, clock: Callable[[], int], total: int, chunk: int, cadences: Sequence[int]) -> None:
        self.clock, self.total, self.chunk, self.cadences = clock, total, chunk, tuple(cadences)
        # counted once, before the first chunk: Lightning compares it with the chunks that it has fetched
        self.chunks = count_chunks(total, chunk, *cadences, start=clock())

    def __len__(self) -> int:
        return self.chunks

    def __iter__(self) -> Iterator[Any]:
        while (clock := self.clock()) < self.total:
            yield min(self.chunk, next_boundary(clock, self.total, *self.cadences) - clock)


class OfflineStream(Chunks):
    """Chunks of K batches of B, which ``draw`` makes of both numbers; ``clock`` counts gradient updates."""

    def __init__(self, draw: Callable[[tuple[int, int]], Any], batch_size: int, **of: Any) -> None:
        super().__init__(**of)
        self.draw, self.batch_size = draw, batch_size

    def __iter__(self) -> Iterator[Any]:
        for updates in super().__iter__():
            yield self.draw((updates, self.batch_size))
