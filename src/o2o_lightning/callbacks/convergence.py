"""When a phase's measured curves have settled, and the end of the phase if it asked for that."""

from collections.abc import Container
from dataclasses import dataclass
from typing import Any

import lightning as L

from o2o_lightning.callbacks.hooks import PhaseCallback
from o2o_lightning.errors import UserError, at_least
from o2o_lightning.objectives.diagnostics import relative_change

FLOOR, TINY = 0.25, 1e-8  # least units of ratios and of magnitudes


@dataclass(frozen=True)
class Convergence:
    """When re-evaluation and alignment count as settled.

    Attributes:
        every: gradient updates between two measurements.
        window: measurements that are averaged; their mean is compared with that of as many before.
        share: of the held-out states for which π_off's action is worth the most, that makes a critic aligned.
        tolerance: largest relative change of every measured curve from one window to the next that counts as none.
        patience: measurements without a change, one after the other, that make a plateau.
        least: gradient updates before which no plateau counts.
        most: gradient updates after which a phase that stops when it has settled ends anyway; a fifth of the paper's.
        held_out: share of the episodes that is measured on and, with ``stop: converged``, not learned from.
    """

    every: int = 1000
    window: int = 5
    tolerance: float = 0.005
    patience: int = 3
    least: int = 10_000
    most: int = 100_000
    held_out: float = 0.05
    share: float = 0.9

    def __post_init__(self) -> None:
        limits = {"every": 1, "window": 1, "patience": 1, "least": 0, "most": 1, "tolerance": 0.0}
        for name, least in limits.items():
            at_least(f"--model.convergence.{name}", getattr(self, name), least)
        for name in ("held_out", "share"):
            if not 0.0 < getattr(self, name) < 1.0:
                value = getattr(self, name)
                raise UserError(f"--model.convergence.{name} {value:g}: a share between 0 and 1 is needed.")


class ConvergenceWatch(PhaseCallback):
    """Measures a :class:`~o2o_lightning.phases.converging.Converging` at a cadence, and judges its curves.

    A plateau is a change below the tolerance of every curve from one window of measurements to the next, ``patience``
    times one after the other and not before ``least`` updates. What is measured never changes what is learned. With
    ``stops`` the phase ends at its plateau, or after the most updates that the rule allows. With a ``goal``, a
    curve's name, it has settled where a window of that curve has the ``share``, plateau or not.
    """

    kept = ("curves", "change", "calm", "settled_at")

    def __init__(self, settings: Convergence, stops: bool, goal: str | None = None) -> None:
        self.settings, self.stops, self.goal = settings, stops, goal
        self.curves: dict[str, list[float]] = {}
        self.change = float("inf")
        self.calm = 0
        self.settled_at: int | None = None

    def on_train_batch_end(self, trainer: L.Trainer, phase: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if phase.updates % self.settings.every:
            return
        measured = phase.measure()
        phase.log_now({f"measured_{name}": value for name, value in measured.items()})
        self._judge(phase.updates, measured, phase.method.magnitudes, phase.restless)
        over = self.settled_at is not None or (self.goal is None and phase.updates >= self.settings.most)
        if trainer.strategy.reduce_boolean_decision(self.stops and over, all=True):  # processes must end together
            trainer.should_stop = True

    def _judge(
        self, updates: int, measured: dict[str, float], magnitudes: Container[str] = (), restless: Container[str] = ()
    ) -> None:
        window, changes = self.settings.window, []
        for name, value in measured.items():
            # two windows are all that the rule looks at, and all that a checkpoint need hold
            curve = self.curves[name] = [*self.curves.get(name, ()), value][-2 * window :]
            if name not in restless:
                changes.append(relative_change(curve, window, TINY if name in magnitudes else FLOOR))
        self.change = max(changes, default=float("inf"))  # a method may name no curve
        self.calm = self.calm + 1 if self.change <= self.settings.tolerance else 0
        if self.goal is not None:
            curve = self.curves[self.goal][-window:]
            reached = len(curve) == window and sum(curve) / window >= self.settings.share
        else:
            reached = self.calm >= self.settings.patience and updates >= self.settings.least
        if self.settled_at is None and reached:
            self.settled_at = updates
