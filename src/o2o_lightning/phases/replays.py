"""Gradient updates that are replayed whole, as they were recorded: on a GPU, one launch for many."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice, repeat
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor

from o2o_lightning.data.near import NearGather
from o2o_lightning.engine.captured import Captured
from o2o_lightning.engine.engine import Engine
from o2o_lightning.engine.gather import Gather
from o2o_lightning.engine.health import ChunkRecord
from o2o_lightning.engine.lanes import LaneCaptured
from o2o_lightning.engine.record import CannotRecord, CudaGraphs, tape
from o2o_lightning.engine.whole import WholeUpdates
from o2o_lightning.launch import note_once
from o2o_lightning.methods.method import Follow, Moment, Noise
from o2o_lightning.nn.optimizers import LAMB, Adam, AdamW
from o2o_lightning.phases.descent import Draw, is_heard

if TYPE_CHECKING:
    from o2o_lightning.phases.base import Phase

Compile = bool | Literal["auto", "record"]
STEP_BY_STEP = "updates are made step by step"


class Made(NamedTuple):
    """An update of this chunk, and what it was made of."""

    moment: Moment
    batches: Any
    number: int  # among them
    noise: Noise


class Replays:
    """The updates of a phase by replays, a full chunk at once; one by one where a row of metrics comes.

    The numbers of rows and the noise are drawn as without it, so that a run has the same ones. Where the data can be
    kept near the networks, the gather is part of the recording; else the batches are its inputs.
    """

    def __init__(self, phase: Phase) -> None:
        self.phase, self.data = phase, phase.data
        self.optimizer = cast(LightningOptimizer, phase.optimizers())
        self.captured = _captured(phase, self.optimizer.optimizer)
        self.near = self.data.keep_near(phase.device)
        self.gather = NearGather(self.data) if self.near else Gather()
        self.count = 0
        self._made: list[Made] = []

    def begin(self) -> None:
        """Before a chunk: what callbacks have loaded since may be in another memory."""
        self.captured.forget_if_moved()

    def make(self, draws: Iterable[Draw]) -> None:
        """Makes the updates of ``draws``, one after the other."""
        rest = iter(draws)
        for draw in rest:
            batches = draw.numbers if self.near else [_plain(batch) for batch in self.data.batches(draw.numbers)]
            count = 1 if isinstance(batches, tuple) else len(batches)
            size = count if count == self.data.chunk and not self._logs_within(count) else 1
            for at in range(0, count, size):
                part = batches if count == 1 else batches[at : at + size]
                noises = self._noises(part, size)
                try:
                    self._replay(draw, part, noises)
                except CannotRecord as error:
                    self._give_up(draw, at, noises, rest, error)
                    return

    def check(self) -> None:
        """Raises :class:`NonFinite` where a loss was not finite, and no step was made any more."""
        made, self._made = self._made, []
        good = self.captured.made
        if good < self.count:
            self._blame(made[good - self.count + len(made)])

    def _replay(self, draw: Draw, part: Any, noises: Sequence[Noise]) -> None:
        phase = self.phase
        moments = [Moment(phase.updates + k, phase.env_steps, *draw[1:]) for k in range(len(noises))]
        due = phase.logs_at(phase.updates + 1) and len(noises) == 1
        if self.near:
            self.data.refresh()
        rows = self.captured(moments, part, noises, self.gather, due)
        if rows is None:  # the other seeds are somewhere else
            batches = self.gather(part)
            phase.descent.run(phase.learn(b, *draw[1:], n) for b, n in zip(batches, noises, strict=True))
            phase.descent.check()
            return
        self.count += len(moments)
        for k, (moment, noise) in enumerate(zip(moments, noises, strict=True)):
            self._made.append(Made(moment, part, k, noise))
            self.optimizer._on_before_step()  # Lightning's clock
            self.optimizer._on_after_step()
        phase.updates += len(moments)
        if due:
            phase.log_means(rows[0])

    def _logs_within(self, count: int) -> bool:
        return any(self.phase.logs_at(self.phase.updates + k) for k in range(1, count + 1))

    def _noises(self, part: Any, count: int) -> list[Noise]:
        shape = (self.data.batch_size, self.data.sizes()[1]) if self.near else tuple(part[0]["action"].shape)
        return [self.phase.noise.draw(self.phase.method.noise(shape)) for _ in range(count)]

    def _give_up(self, draw: Draw, at: int, noises: list[Noise], rest: Iterator[Draw], error: CannotRecord) -> None:
        """Makes this update and all that follow step by step, with the same rows and noise."""
        self.check()
        phase = self.phase
        note_once(f"{phase.phase}: {phase.method.name} can't be recorded ({error}): {STEP_BY_STEP}")
        phase.end_replays()
        batches = islice(self.data.batches(draw.numbers), at, None)
        drawn = chain(noises, repeat(None))
        updates = (phase.learn(batch, *draw[1:], noise) for batch, noise in zip(batches, drawn, strict=False))
        more = (phase.learn(batch, *one[1:]) for one in rest for batch in self.data.batches(one.numbers))
        phase.descent.run(chain(updates, more))

    @torch.no_grad()
    def _blame(self, made: Made) -> None:
        """Finds the batch again, and says what was wrong with it: the networks are as they were before its step."""
        phase, moment = self.phase, made.moment
        batch = list(self.gather(made.batches))[made.number]
        record = ChunkRecord(phase.phase)
        for step in phase.method.update(moment):
            if not isinstance(step, Follow):
                loss = step(batch, made.noise)
                record.add(moment.update, batch, loss.value, loss.metrics)
                record.admit(loss.value, self.optimizer.optimizer)
        record.check(last=True)


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
