"""Hooks beyond Lightning's: after each environment step, and around each evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import lightning as L
from lightning.pytorch.callbacks import Callback

from o2o_lightning.envs.episodes import Evaluation

if TYPE_CHECKING:
    from o2o_lightning.phases.base import Phase


class PhaseCallback(Callback):
    """A callback that also hears of environment steps and evaluations; a checkpoint holds what it names in ``kept``."""

    kept: ClassVar[tuple[str, ...]] = ()

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.kept}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name in self.kept:
            setattr(self, name, state_dict[name])

    def on_env_step(self, trainer: L.Trainer, phase: Phase) -> None:
        """After each step of the training environment, before the updates that follow it."""

    def on_evaluation_begun(self, trainer: L.Trainer, phase: Phase) -> None:
        """When the evaluation of this moment's policy goes on in the background; its :meth:`on_evaluation` follows."""

    def on_evaluation(self, trainer: L.Trainer, phase: Phase, result: Evaluation) -> None:
        """After each evaluation of the learning policy."""
