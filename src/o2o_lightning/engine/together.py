"""Whole updates of several seeds in one recording, as those of one seed are recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from o2o_lightning.engine.captured import Captured, Later, Piece
from o2o_lightning.engine.gather import Gather
from o2o_lightning.engine.record import Record
from o2o_lightning.engine.stacked import StackedEngine
from o2o_lightning.engine.whole import Row, WholeUpdates
from o2o_lightning.methods.method import Method


@dataclass
class Wish:
    """A seed's whole updates, and what came of them.

    ``rows``, of each piece that was made, stay None where the seeds are not all at the same ``point``.
    """

    point: Sequence[Any]
    pieces: Sequence[Piece]
    gather: Gather
    rows: list[list[Row]] | None = None
    failure: BaseException | None = None


class Together:
    """The recordings of all seeds: one pass over the networks of all, and each seed's own optimizer.

    Args:
        stacked: makes the engine of the networks of all, when all have some.
    """

    def __init__(self, stacked: Callable[[], StackedEngine]) -> None:
        self.stacked = stacked
        self.learners: dict[int, tuple[Method, torch.optim.Optimizer]] = {}
        self.record: Record | None = None
        self.loaded = False  # networks or moments, since the last recording
        self._captured: Captured | None = None

    def made(self, place: int) -> Later:
        """How many whole updates of that seed there will have been before its first loss that is not finite."""
        return Later(torch.zeros(()) if self._captured is None else self._captured.updates.made[place])

    def make(self, wishes: Mapping[int, Wish]) -> None:
        """The updates of all seeds that there are, if they are at the same point."""
        first = next(iter(wishes.values()))
        if any(wish.point != first.point for wish in wishes.values()):
            return
        for wish in wishes.values():
            wish.rows = []
        try:
            captured = self._recordings(sorted(wishes))
            seeds = range(*captured.updates.engine.shape)
            each = [wishes.get(place, first) for place in seeds]  # what an empty lane does, nobody looks at
            gather = partial(first.gather.of_all, [wish.gather for wish in each])
            for same in zip(*(wish.pieces for wish in each), strict=True):
                drawn, noise = [piece.drawn for piece in same], [piece.noise for piece in same]
                made = captured.replay(same[0]._replace(drawn=drawn, noise=noise), gather)
                for place, wish in wishes.items():
                    own = _of(made, place) if any(same[0].due) else made
                    wish.rows.append(own)  # type: ignore[union-attr]
        except BaseException as failure:
            for wish in wishes.values():
                wish.failure = failure

    def _recordings(self, places: list[int]) -> Captured:
        """Those of the seeds at ``places``; anew where one has stopped since."""
        before = self._captured
        if before is None or [*before.updates.learners] != places:
            assert self.record is not None
            updates = WholeUpdates(self.stacked(), {place: self.learners[place] for place in places})
            if before is not None:
                updates.bad, updates.made = before.updates.bad, before.updates.made
            self._captured = Captured(updates, self.record)
        elif self.loaded:
            before.forget_if_moved()
        self.loaded = False
        return self._captured  # type: ignore[return-value]


def _of(rows: Sequence[Row], place: int) -> list[Row]:
    """What of them is that seed's."""
    return [{name: value[place] for name, value in row.items()} for row in rows]
