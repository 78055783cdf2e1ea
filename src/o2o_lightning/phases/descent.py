"""How a loss becomes an optimizer step."""

import contextlib
from collections.abc import Iterable
from typing import Any, NamedTuple, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor, nn

from o2o_lightning.engine.engine import Update, one_after_another
from o2o_lightning.engine.health import ChunkRecord

HEARD = ("on_before_backward", "on_after_backward", "on_before_optimizer_step")


class Draw(NamedTuple):
    """Batches for one update or more by the ``numbers`` of their rows; the rest as :class:`Moment` has it."""

    numbers: Any
    place: int = 0
    new_steps: int = 1


class Descent:
    """The updates of one chunk, loss by loss; the ``record`` of them may refuse a step.

    Lightning scales the losses of ``16-mixed``, and tells every callback of each backward pass and each step. Where
    neither is needed the passes and steps are torch's own: asking takes 4 % of an update of TD3.
    """

    def __init__(self, phase: Any) -> None:
        self.phase, self.record = phase, ChunkRecord(phase.phase, phase.ranks.rank)
        self.lightning_optimizer = cast(LightningOptimizer, phase.optimizers())
        self.optimizer: torch.optim.Optimizer = self.lightning_optimizer.optimizer
        self.limits: dict[str, float] = phase.method.gradient_limits()
        self.direct = not is_heard(phase.trainer)

    def make(self, draws: Iterable[Draw]) -> None:
        """Makes the updates of ``draws``, one after the other."""
        phase = self.phase
        self.run(phase.learn(batch, *draw[1:]) for draw in draws for batch in phase.data.batches(draw.numbers))

    def run(self, updates: Iterable[Update]) -> None:
        """Makes those ``updates``."""
        self.phase.engine.run(one_after_another(updates), self.phase.updates)

    def check(self) -> None:
        """Raises where a loss was not finite, and no step was made any more."""
        self.record.check()

    end_chunk = check

    def __call__(self, loss: Tensor, counted: bool) -> None:
        """Descends ``loss``; ``counted`` steps move Lightning's ``global_step``."""
        phase, optimizer = self.phase, self.optimizer
        optimizer.zero_grad(set_to_none=True)
        if self.direct:
            loss.backward()  # type: ignore[no-untyped-call]
        else:
            self._backward(loss)
        if phase.ranks.count > 1:
            parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
            loss = phase.ranks.average_gradients(parameters, loss)
        self.record.admit(loss, optimizer)
        if self.limits:
            clip_gradients(optimizer, self.limits, phase.trainer.precision_plugin)
        self._step(counted)

    def _backward(self, loss: Tensor) -> None:
        strategy = self.phase.trainer.strategy
        parallel = isinstance(strategy, ParallelStrategy)
        with strategy.block_backward_sync() if parallel else contextlib.nullcontext():  # gradients stay in this process
            self.phase.manual_backward(loss)

    def _step(self, counted: bool) -> None:
        if self.direct and counted:
            self.lightning_optimizer._on_before_step()
            self.optimizer.step()
            self.lightning_optimizer._on_after_step()
        elif self.direct:
            self.optimizer.step()
        elif counted:
            self.lightning_optimizer.step()
        else:
            # A later loss of the same update: through the precision plugin, past Lightning's step counter.
            self.phase.trainer.strategy.optimizer_step(self.optimizer, lambda: None)


def is_heard(trainer: L.Trainer) -> bool:
    """Whether Lightning has more to do at a backward pass or a step than to ask each callback in vain."""
    if type(trainer.precision_plugin) is not Precision or isinstance(trainer.strategy, ParallelStrategy):
        return True
    if not isinstance(trainer.profiler, PassThroughProfiler):  # type: ignore[attr-defined]
        return True
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    pairs: list[tuple[type, type]] = [(type(callback), Callback) for callback in callbacks]
    pairs.append((type(trainer.lightning_module), L.LightningModule))
    return any(getattr(kind, hook) is not getattr(base, hook) for kind, base in pairs for hook in HEARD)


def clip_gradients(optimizer: torch.optim.Optimizer, limits: dict[str, float], precision: Any) -> None:
    """Clips the gradient norm of each group that ``limits`` names."""
    scaler = getattr(precision, "scaler", None)
    scale = 1.0 if scaler is None else scaler.get_scale()  # fused Adam itself undoes the scale of 16-mixed
    for group in optimizer.param_groups:
        if group["name"] in limits:
            nn.utils.clip_grad_norm_(group["params"], limits[group["name"]] * scale)
