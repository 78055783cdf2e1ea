"""Hooks beyond Lightning's: after each environment step, and around each evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import lightning as L
from lightning.pytorch.callbacks import Callback

from o2o_lightning.envs.episodes import Evaluation

if TYPE_CHECKING:
    from o2o_lightning.phases.base import Phase


class PhaseCallback(Callback):
    """A callback that also hears of environment steps and evaluations."""

    def on_env_step(self, trainer: L.Trainer, phase: Phase) -> None:
        """After each step of the training environment, before the updates that follow it."""

    def on_evaluation_begun(self, trainer: L.Trainer, phase: Phase) -> None:
        """When the evaluation of this moment's policy goes on in the background; its :meth:`on_evaluation` follows."""

    def on_evaluation(self, trainer: L.Trainer, phase: Phase, result: Evaluation) -> None:
        """After each evaluation of the learning policy."""
