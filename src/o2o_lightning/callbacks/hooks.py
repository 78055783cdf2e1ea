"""Hooks beyond Lightning's: after each environment step, and around each evaluation."""

from typing import Any, ClassVar, Protocol

import lightning as L
from lightning.pytorch.callbacks import Callback

from o2o_lightning.envs.episodes import Evaluation


class Watched(Protocol):
    """What callbacks read of any phase; a callback of one kind of phase takes it as what it is."""

    phase: ClassVar[str]
    clock_name: ClassVar[str]
    updates: int
    env_steps: int
    eval_env_steps: int
    curve: list[list[Any]]
    scores: dict[str, float | None]
    returns: dict[str, float]
    display: dict[str, Any]
    source: Any

    @property
    def clock(self) -> int: ...

    @property
    def total(self) -> int: ...

    @property
    def algorithm(self) -> str: ...

    @property
    def data(self) -> Any: ...

    def status(self) -> list[str]: ...

    def facts(self) -> dict[str, Any]: ...


class PhaseCallback(Callback):
    """A callback that also hears of environment steps and evaluations; a checkpoint holds what it names in ``kept``."""

    kept: ClassVar[tuple[str, ...]] = ()

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.kept}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name in self.kept:
            setattr(self, name, state_dict[name])

    def on_env_step(self, trainer: L.Trainer, phase: Watched) -> None:
        """After each step of the training environment, before the updates that follow it."""

    def on_evaluation_begun(self, trainer: L.Trainer, phase: Watched) -> None:
        """When the evaluation of this moment's policy goes on in the background; its :meth:`on_evaluation` follows."""

    def on_evaluation(self, trainer: L.Trainer, phase: Watched, result: Evaluation) -> None:
        """After each evaluation of the learning policy."""
