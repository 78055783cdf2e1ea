"""When the policy is evaluated, and who hears of it."""

from __future__ import annotations

from typing import Any

import lightning as L

from o2o_lightning.callbacks.hooks import PhaseCallback


class EvaluationLoop(PhaseCallback):
    """Evaluates at the data's cadence on the phase's own clock, at the end, and online at the start too."""

    def __init__(self) -> None:
        self.evaluated_at = -1

    def state_dict(self) -> dict[str, Any]:
        return {"evaluated_at": self.evaluated_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.evaluated_at = state_dict["evaluated_at"]

    def on_train_start(self, trainer: L.Trainer, phase: Any) -> None:
        if phase.evaluates_at_start and self.evaluated_at < 0:
            self._evaluate(trainer, phase)

    def on_train_batch_end(self, trainer: L.Trainer, phase: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        every = phase.evaluation_period
        if phase.evaluates and every > 0 and phase.clock and phase.clock % every == 0:
            self._evaluate(trainer, phase)

    def on_train_end(self, trainer: L.Trainer, phase: Any) -> None:
        if phase.evaluates:
            self._evaluate(trainer, phase)

    def _evaluate(self, trainer: L.Trainer, phase: Any) -> None:
        if phase.data.env_id is None or self.evaluated_at == phase.clock:
            return
        self.evaluated_at = phase.clock
        phase.run_evaluation()
