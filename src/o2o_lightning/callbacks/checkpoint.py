"""When checkpoints are written: ``last.ckpt`` at a cadence and at the end, ``best.ckpt`` at each best score."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint

from o2o_lightning.callbacks.hooks import PhaseCallback
from o2o_lightning.envs.evaluate import Evaluation


class PhaseCheckpoint(ModelCheckpoint, PhaseCallback):
    """Lightning's ModelCheckpoint on a phase's own clock.

    Args:
        dirpath: where the files go.
        every: gradient updates (offline phases) or environment steps (online phase) between two ``last.ckpt``.
        save_best: also keep ``best.ckpt``, the policy of the highest evaluation so far.
    """

    def __init__(self, dirpath: str, every: int = 10_000, save_best: bool = True) -> None:
        super().__init__(
            dirpath=dirpath, filename="last", save_top_k=1, enable_version_counter=False, save_on_train_epoch_end=False
        )
        self.every, self.save_best = max(every, 1), save_best
        self.saved_at = 0
        self.best_value = -math.inf

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "saved_at": self.saved_at, "best_value": self.best_value}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.saved_at, self.best_value = state_dict["saved_at"], state_dict["best_value"]

    def on_train_batch_end(self, trainer: L.Trainer, phase: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if phase.clock // self.every > self.saved_at // self.every:
            self._save(trainer, phase, "last")

    def on_validation_end(self, trainer: L.Trainer, phase: Any) -> None:
        """Nothing: a phase is evaluated on its own clock, not by Lightning's validation loop."""

    def on_train_end(self, trainer: L.Trainer, phase: Any) -> None:
        self._save(trainer, phase, "last")

    def on_evaluation(self, trainer: L.Trainer, phase: Any, result: Evaluation) -> None:
        if result.value > self.best_value:
            self.best_value = result.value
            if self.save_best:
                self._save(trainer, phase, "best")

    def _save(self, trainer: L.Trainer, phase: Any, name: str) -> None:
        if name == "last":
            self.saved_at = phase.clock
        assert self.dirpath is not None
        self.best_model_path = str(Path(self.dirpath) / f"{name}.ckpt")
        self._save_checkpoint(trainer, self.best_model_path)
