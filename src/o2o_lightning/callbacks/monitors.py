"""Lightning's own callbacks on a phase's clock: what they wait for is an epoch, and a phase is a single one."""

import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.loops.fit_loop import RestartStage
from lightning.pytorch.trainer.connectors.logger_connector.logger_connector import _LoggerConnector

from o2o_lightning.callbacks.hooks import PhaseCallback
from o2o_lightning.callbacks.run_directory import RunDirectory
from o2o_lightning.callbacks.sections import EVALUATED, LATER, sectioned
from o2o_lightning.errors import UserError
from o2o_lightning.launch import note_once

ROWS = 2  # rows of metrics after which a name has come, or never will


class PhaseRows(_LoggerConnector):
    """Has what logs by Lightning's count of batches, as LearningRateMonitor does, log with the phase's rows."""

    due = False

    @property
    def should_update_logs(self) -> bool:
        return self.due


class Monitors(PhaseCallback):
    """Asks each callback that monitors a name whenever there is a new value of it, at the end of the chunk.

    So an EarlyStopping's patience counts values. A ModelCheckpoint that counts steps or time is asked when they have
    passed.
    """

    kept = ("due",)

    def __init__(self) -> None:
        self.due = False  # whether what logs by Lightning's count of batches does so before the next chunk
        self._steps = self._rows = 0
        self._asked_at = 0.0
        self._validates: int | float = 1.0

    def setup(self, trainer: L.Trainer, phase: Any, stage: str) -> None:
        if stage != "fit":
            return
        trainer._logger_connector.__class__ = PhaseRows
        # a phase is evaluated on its own clock, not by Lightning's validation loop
        self._validates, trainer.limit_val_batches = trainer.limit_val_batches, 0
        silent = [callback for callback in watching(trainer) if is_silent(callback, phase)]
        for callback in silent:
            note_once(f"{phase.phase}: {_name(callback)} is left out, for this phase has no '{callback.monitor}'")
        kept = [callback for callback in trainer.callbacks if callback not in silent]  # type: ignore[attr-defined]
        trainer.callbacks = kept  # type: ignore[attr-defined]
        for callback in watching(trainer):
            if isinstance(callback, EarlyStopping):
                callback._check_on_train_epoch_end = False
            elif isinstance(callback, ModelCheckpoint) and callback._save_on_train_epoch_end is None:
                counts = callback._every_n_train_steps or callback._train_time_interval
                callback._save_on_train_epoch_end = None if callback.monitor is None and not counts else False

    def teardown(self, trainer: L.Trainer, phase: Any, stage: str) -> None:
        if stage == "fit":
            trainer.limit_val_batches = self._validates

    def on_train_start(self, trainer: L.Trainer, phase: Any) -> None:
        self._steps, self._rows, self._asked_at = trainer.global_step, 0, time.monotonic()
        _tell_clock(trainer, phase.clock, self.due)
        if phase.clock:  # gone on with: its one epoch has begun before
            trainer.fit_loop._restart_stage = RestartStage.RESTARTED_MID_EPOCH
        for callback in watching(trainer):
            reason = getattr(callback, "stopping_reason", EarlyStoppingReason.NOT_STOPPED)
            if reason != EarlyStoppingReason.NOT_STOPPED:  # a kill came between its word and the phase's end
                trainer.should_stop = True
        self._ask(trainer, phase, self._steps)

    def on_train_batch_end(self, trainer: L.Trainer, phase: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        every, before = trainer.log_every_n_steps, self._steps  # type: ignore[attr-defined]
        self._steps = trainer.global_step
        rows = self._steps // every - before // every if every else 0
        self.due = rows > 0
        _tell_clock(trainer, phase.clock - 1, self.due)  # Lightning counts this batch in a moment
        self._ask(trainer, phase, before)
        self._rows += rows
        if self._rows - rows < ROWS <= self._rows:
            self._refuse(trainer, phase, LATER)

    def on_train_end(self, trainer: L.Trainer, phase: Any) -> None:
        self._ask(trainer, phase, self._steps)  # of the last evaluation

    def on_fit_end(self, trainer: L.Trainer, phase: Any) -> None:
        self._refuse(trainer, phase)  # with all results written, where the phase was too short to tell earlier

    def _ask(self, trainer: L.Trainer, phase: Any, before: int) -> None:
        fresh, phase.fresh = phase.fresh, set()
        now = trainer.strategy.broadcast(time.monotonic())
        for callback in watching(trainer):
            due = callback.monitor in fresh
            if isinstance(callback, ModelCheckpoint):
                steps, interval = callback._every_n_train_steps, callback._train_time_interval
                if steps:
                    due = self._steps // steps > before // steps
                elif interval is not None:
                    due = now - self._asked_at >= interval.total_seconds()
                    self._asked_at = now if due else self._asked_at
                due = due and (callback.monitor is None or callback.monitor in trainer.callback_metrics)
                callback._defer_save_until_validation = due
            if due:
                callback.on_validation_end(trainer, phase)

    def _refuse(self, trainer: L.Trainer, phase: Any, later: tuple[str, ...] = ()) -> None:
        known, every = trainer.callback_metrics, trainer.log_every_n_steps  # type: ignore[attr-defined]
        rare = "" if self._rows else f"; losses come every {every} updates, so none came (--trainer.log_every_n_steps)"
        for callback in watching(trainer):
            name = callback.monitor
            strict = getattr(callback, "strict", True) and name is not None and name not in known
            if strict and sectioned(name).partition("/")[0] not in later:
                if _behind_another(trainer, phase):  # which had the name, or was refused
                    note_once(f"{phase.phase}: {_name(callback)} is left out, for this phase has no '{name}'")
                    continue
                raise UserError(
                    f"--trainer.callbacks {_name(callback)}: phase '{phase.phase}' has no '{name}' to monitor. It has "
                    f"{', '.join(sorted(known))}{rare}. For one phase alone write --PHASE.trainer.callbacks+=NAME."
                )


def watching(trainer: L.Trainer) -> list[Any]:
    """The callbacks of others that monitor a name, and those that save checkpoints."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [
        callback
        for callback in callbacks
        if not isinstance(callback, PhaseCallback) and isinstance(getattr(callback, "monitor", 0), str | None)
    ]


def saving_steps(trainer: L.Trainer) -> list[int]:
    """After how many gradient updates each of them saves that counts any."""
    return [callback._every_n_train_steps for callback in watching(trainer) if isinstance(callback, ModelCheckpoint)]


def is_silent(callback: Any, phase: Any) -> bool:
    """Whether the callback monitors evaluations, and the phase makes none."""
    return not phase.evaluates and callback.monitor in {*EVALUATED, *map(sectioned, EVALUATED)}


def _tell_clock(trainer: L.Trainer, clock: int, due: bool) -> None:
    connector: Any = trainer._logger_connector
    connector.due, trainer.fit_loop.epoch_loop._batches_that_stepped = due, clock


def _behind_another(trainer: L.Trainer, phase: Any) -> bool:
    """Whether the command began with an earlier phase."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    commands = [callback.command for callback in callbacks if isinstance(callback, RunDirectory) and callback.command]
    return any(command["phases"][0] != phase.phase for command in commands)


def _name(callback: Callback) -> str:
    return type(callback).__name__
