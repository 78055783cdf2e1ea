"""Gradient updates that are replayed whole, as they were recorded: on a GPU, one launch for many."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from tensordict import TensorDictBase
from torch import Tensor

from o2o_lightning.data.near import NearGather
from o2o_lightning.engine.captured import Captured, Later, Piece, parts_of
from o2o_lightning.engine.engine import Engine
from o2o_lightning.engine.gather import Gather
from o2o_lightning.engine.health import ChunkRecord
from o2o_lightning.engine.lanes import LaneCaptured
from o2o_lightning.engine.noise import BLOCK
from o2o_lightning.engine.record import CannotRecord, CudaGraphs, tape
from o2o_lightning.engine.whole import Row, WholeUpdates, order_of
from o2o_lightning.launch import note_once
from o2o_lightning.methods.method import Follow, Moment, Noise
from o2o_lightning.nn.optimizers import LAMB, Adam, AdamW
from o2o_lightning.phases.descent import Draw, is_heard
from o2o_lightning.replay.table import nested

if TYPE_CHECKING:
    from o2o_lightning.phases.base import Phase

Compile = bool | Literal["auto", "record"]
STEP_BY_STEP = "updates are made step by step"
CHUNKS = 4  # of the DataModule's in one of training's: so the host does less between replays


class Asked(NamedTuple):
    """Updates that were asked for, the count of those before, and what tells how many have been made."""

    before: int
    pieces: list[Piece]
    made: Later


class Replays:
    """The updates of a phase by replays, of a chunk as one or as few.

    The numbers of rows and the noise are drawn as without it, so that a run has the same ones. Where the data can be
    kept near the networks, the gather is part of the recording; else the batches are its inputs.
    """

    def __init__(self, phase: Phase) -> None:
        self.phase, self.data = phase, phase.data
        self.optimizer = cast(LightningOptimizer, phase.optimizers())
        self.captured = _captured(phase, self.optimizer.optimizer)
        self.near = self.data.keep_near(phase.device)
        self.gather = NearGather(self.data) if self.near else Gather()
        self.cadences = [every for every in (self.data.eval_every_updates, *phase.cadences) if every > 0]
        # online a chunk is one of environment steps
        self.most = self.data.chunk if phase.clock_name == "updates" else min(self.data.chunk, BLOCK)
        self.count = 0
        self._pieces: list[Piece] = []  # of this chunk
        self._asked: list[Asked] = []

    def begin(self) -> None:
        """Before a chunk: what callbacks have loaded since may be in another memory."""
        self.captured.forget_if_moved()

    def make(self, draws: Iterable[Draw]) -> None:
        """Makes the updates of ``draws``, one after the other."""
        phase, rest = self.phase, iter(draws)
        if self.near:
            self.data.refresh()
        while pieces := self._next(rest):
            made = self.captured(pieces, self.gather)
            if made is None:  # the other seeds are somewhere else
                self.check()
                self._one_by_one(pieces)
                phase.descent.check()
                continue
            done = 0
            try:
                for piece, rows in zip(pieces, made, strict=True):
                    self._count(piece, rows)
                    done += 1
            except CannotRecord as error:
                self._give_up(pieces[done:], rest, error)
                return

    def check(self, last: bool = True) -> None:
        """Raises :class:`NonFinite` where a loss was not finite, and no step was made any more.

        A device need not be waited for: the ``last`` chunk is asked after when the next one is under way, unless
        something looks at the networks before.
        """
        if self._pieces:
            before = self.count - sum(len(piece.moments) for piece in self._pieces)
            self._asked.append(Asked(before, self._pieces, self.captured.made()))
            self._pieces = []
        while len(self._asked) > (0 if last else 1):
            before, pieces, made = self._asked[0]
            good = int(made) - before
            for piece in pieces:
                if good < len(piece.moments):
                    self._blame(piece, good)
                good -= len(piece.moments)
            self._asked.pop(0)  # of one that has failed whoever asks again hears the same

    def end_chunk(self) -> None:
        """As :meth:`check`, of the chunk before this one where nobody looks at the networks after it."""
        phase = self.phase
        ends = [*self.cadences, phase.total]
        self.check(last=phase.clock_name != "updates" or any(phase.updates % every == 0 for every in ends))

    def _next(self, draws: Iterator[Draw]) -> list[Piece]:
        """Those of the next draws, of a few chunks at most; none at their end."""
        given: list[Any] = []
        of: list[tuple[int, int]] = []
        for draw in draws:
            batches = draw.numbers if self.near else [_plain(batch) for batch in self.data.batches(draw.numbers)]
            if isinstance(batches, Tensor):  # numbers of many
                return self._cut(batches, [draw[1:]] * len(batches), self.phase.updates)
            own = [batches] if isinstance(batches, tuple) else batches
            given += own
            of += [draw[1:]] * len(own)
            if len(given) >= CHUNKS * self.most:
                break
        pieces: list[Piece] = []
        for _, alike in groupby(given, key=self._shape):  # the last minibatch may be shorter
            part, at = [*alike], sum(len(piece.moments) for piece in pieces)
            pieces += self._cut(part, of[at : at + len(part)], self.phase.updates + at)
        return pieces

    def _cut(self, given: Any, of: Sequence[tuple[int, int]], first: int) -> list[Piece]:
        """Updates of one form, of which number ``first`` is the first."""
        phase, pieces, at = self.phase, [], 0
        wanted = phase.method.noise(self._shape(given[0]))
        for size in sizes(len(given), self.most):
            numbers = range(first + at, first + at + size)
            moments = [Moment(n, phase.env_steps, *own) for n, own in zip(numbers, of[at : at + size], strict=True)]
            due = [phase.logs_at(number + 1) for number in numbers]
            order = tuple([order_of(phase.method, moment) for moment in moments])
            pieces.append(Piece(moments, order, given[at : at + size], phase.noise.draw_many(wanted, size), due))
            at += size
        return pieces

    def _shape(self, given: Any) -> tuple[int, ...]:
        return (self.data.batch_size, self.data.sizes()[1]) if self.near else tuple(given["action"].shape)

    def _count(self, piece: Piece, rows: Sequence[Row]) -> None:
        """What has been replayed, and the rows of it that are due."""
        phase, start, count = self.phase, self.phase.updates, len(piece.moments)
        self._pieces.append(piece)
        self.count += count
        if any(piece.due):
            self.check()  # no row is written of updates that were not made
        for k, (due, row) in enumerate(zip(piece.due, rows, strict=True), start=1):
            self.optimizer._on_before_step()  # Lightning's clock
            self.optimizer._on_after_step()
            if due:
                phase.updates = start + k
                phase.log_means(row)
        phase.updates = start + count

    def _one_by_one(self, pieces: Iterable[Piece]) -> None:
        """Makes them step by step, with the same rows and noise."""
        self.phase.descent.run(
            self.phase.learn(batch, moment.place, moment.new_steps, noise)
            for piece in pieces
            for moment, batch, noise in self._parts(piece)
        )

    def _parts(self, piece: Piece) -> Iterator[tuple[Moment, TensorDictBase, Noise]]:
        """Its updates one by one, their batches as phases make them."""
        noises = parts_of(piece.noise, len(piece.moments))
        for moment, batch, noise in zip(piece.moments, self.gather(piece.drawn), noises, strict=True):
            yield moment, nested(batch, batch["action"].shape[:1]) if isinstance(batch, dict) else batch, noise

    def _give_up(self, pieces: Sequence[Piece], rest: Iterator[Draw], error: CannotRecord) -> None:
        """Makes these updates and all that follow step by step."""
        self.check()
        phase = self.phase
        note_once(f"{phase.phase}: {phase.method.name} can't be recorded ({error}): {STEP_BY_STEP}")
        phase.end_replays()
        self._one_by_one(pieces)
        phase.descent.make(rest)

    @torch.no_grad()
    def _blame(self, piece: Piece, number: int) -> None:
        """Finds the batch again, and says what was wrong with it: the networks are as they were before its step."""
        phase = self.phase
        moment, batch, noise = list(self._parts(piece))[number]
        record = ChunkRecord(phase.phase)
        for step in phase.method.update(moment):
            if not isinstance(step, Follow):
                loss = step(batch, noise)
                record.add(moment.update, batch, loss.value, loss.metrics)
                record.admit(loss.value, self.optimizer.optimizer)
        record.check(last=True)


def sizes(count: int, most: int) -> Iterator[int]:
    """Of pieces of so many updates: each of the ``most``, and of what is left powers of two, which are few."""
    while count:
        size = most if count >= most else 1 << (count.bit_length() - 1)
        yield size
        count -= size


def _plain(batch: Any) -> dict[Any, Tensor]:
    return dict(batch.items(True, True))


def replays_of(phase: Phase) -> Replays | None:
    """What replays the updates of ``phase``, if that was asked for, and can be."""
    if not wanted(phase) or why_not(phase) is not None:
        return None
    return Replays(phase)


def _captured(phase: Phase, optimizer: torch.optim.Optimizer) -> Captured | LaneCaptured:
    record = CudaGraphs() if phase.device.type == "cuda" else tape
    if phase.lane is not None:
        return phase.lane.captured(phase.method, optimizer, record)
    return Captured(WholeUpdates(Engine(phase.method), {0: (phase.method, optimizer)}), record)


def wanted(phase: Phase) -> bool:
    """Whether updates are to be replayed: on a GPU, and for several seeds, if nothing else was said."""
    by_itself = phase.device.type == "cuda" or phase.lane is not None
    return phase.compiling == "record" or (phase.compiling == "auto" and by_itself)


def why_not(phase: Phase) -> str | None:
    """Why the updates of ``phase`` can't be recorded, as far as it shows before."""
    trainer = phase.trainer
    if str(trainer.precision) != "32-true":
        return f"--trainer.precision {trainer.precision}"
    if phase.ranks.count > 1:
        return "several processes average their gradients"
    if phase.lane is not None and phase.method.draws:
        return f"{phase.method.name} draws random numbers in its steps"
    if "priority" in phase.method.needs:
        return f"{phase.method.name} draws by priorities, which the host keeps"
    if type(phase).learn.__module__ != "o2o_lightning.phases.base":
        return f"{type(phase).__name__} makes them in a way of its own"
    if is_heard(trainer) or torch.is_anomaly_enabled():
        return "a callback, a profiler or anomaly detection listens to each step"
    if not isinstance(cast(LightningOptimizer, phase.optimizers()).optimizer, Adam | AdamW | LAMB):
        return f"the optimizer of {phase.method.name} is not this package's"
    return None


def replay_note(phase: Phase) -> str:
    """The one line that says how updates run that are to be replayed."""
    if (why := why_not(phase)) is not None:
        return f"{STEP_BY_STEP}, for {why}"
    if phase.device.type != "cuda" and phase.lane is not None:
        return "the updates of all seeds are recorded and replayed together; --model.compile false for single steps"
    if phase.device.type != "cuda":
        return "updates are recorded and replayed, as on a GPU; for tests, since on a CPU it saves nothing"
    return f"updates are CUDA graphs, up to {phase.data.chunk} of them a launch; --model.compile false for single steps"
