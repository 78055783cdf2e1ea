"""The threshold's schedule on environment steps."""

from __future__ import annotations

from typing import Any

import lightning as L

from o2o_lightning.callbacks.hooks import PhaseCallback
from o2o_lightning.objectives.constraint import threshold_at


class ThresholdSchedule(PhaseCallback):
    """Sets the phase's threshold τ_t at every environment step, linear from ``start`` to ``end``.

    Args:
        start, end: in the divergence's own unit: squared action units for O2TD3, nats for O2SAC.
        env_steps: length of the ramp.
    """

    def __init__(self, start: float, end: float, env_steps: int = 100_000) -> None:
        self.start, self.end, self.ramp_steps = start, end, env_steps

    def on_train_start(self, trainer: L.Trainer, phase: Any) -> None:
        self.on_env_step(trainer, phase)

    def on_env_step(self, trainer: L.Trainer, phase: Any) -> None:
        phase.set_threshold(threshold_at(phase.env_steps, self.start, self.end, self.ramp_steps))
