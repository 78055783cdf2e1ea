"""When checkpoints are written: ``last.ckpt`` at a cadence and at the end, ``best.ckpt`` at each best score."""

import math
import os
import signal
import threading
import time
import uuid
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint

from o2o_lightning.callbacks.hooks import PhaseCallback, Watched
from o2o_lightning.callbacks.metrics import metrics_files
from o2o_lightning.checkpoint import side_state
from o2o_lightning.checkpoint.handover import KEY
from o2o_lightning.child import REQUESTS
from o2o_lightning.engine.health import check_weights
from o2o_lightning.envs.episodes import Evaluation
from o2o_lightning.errors import Interrupted, UserError

RESUME = f"{KEY}_resume"
ECHO = 2.0  # seconds in which SIGTERM counts once: a job manager sends it to all, and so may what has started this one
OPTIMIZER_CLOCK = "epoch_loop.manual_optimization.optim_step_progress"


class StopSignals:
    """Remembers the first SIGINT or SIGTERM, so that the chunk is finished and saved; a second one stops at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._at = 0.0
        self._previous: dict[int, Any] = {}

    def watch(self) -> None:
        """Takes the signals over, where Python lets a thread do so."""
        if self._previous or threading.current_thread() is not threading.main_thread():
            return
        for number in REQUESTS:
            self._previous[number] = signal.signal(number, self._note)

    def release(self) -> None:
        """Gives them back."""
        for number, handler in self._previous.items():
            if signal.getsignal(number) == self._note:  # else Lightning has already put the program's own back
                signal.signal(number, handler)
        self._previous = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self._at = number, time.monotonic()
        elif number == signal.SIGINT or time.monotonic() - self._at > ECHO:
            raise Interrupted("stopped at once; `o2o resume RUN_DIR` goes on from the last checkpoint.", number)


class PhaseCheckpoint(PhaseCallback, ModelCheckpoint):
    """Lightning's ModelCheckpoint on a phase's own clock.

    ``last.ckpt`` is a resume point, with side state beside it; ``best.ckpt`` is a policy, and nothing more.

    Args:
        dirpath: where the files go.
        every: gradient updates (offline phases) or environment steps (online phase) between two ``last.ckpt``.
        save_best: also keep ``best.ckpt``, the policy of the highest evaluation so far.
    """

    kept = ("saved_at", "best_value", "candidate")

    def __init__(self, dirpath: str, every: int = 10_000, save_best: bool = True) -> None:
        super().__init__(
            dirpath=dirpath, filename="last", save_top_k=1, enable_version_counter=False, save_on_train_epoch_end=False
        )
        self.every, self.save_best = max(every, 1), save_best
        self.saved_at = 0
        self.best_value = -math.inf
        self.candidate: str | None = None  # checkpoint of the policy whose evaluation is under way
        self.signals = StopSignals()
        self._token: str | None = None
        self._side: dict[str, Any] | None = None

    # ---- state -------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, trainer: L.Trainer, phase: Any, checkpoint: dict[str, Any]) -> None:
        if self._token is not None:
            checkpoint[RESUME] = {
                "token": self._token,
                "rows": [file.rows for file in metrics_files(trainer)],
                "processes": trainer.world_size,
                "loggers": [logger.version for logger in trainer.loggers],
            }

    def on_load_checkpoint(self, trainer: L.Trainer, phase: Any, checkpoint: dict[str, Any]) -> None:
        path, resume = trainer.ckpt_path, checkpoint.get(RESUME)
        assert path is not None
        if resume is None:
            raise UserError(
                f"checkpoint {path}: it is a policy, not a point to go on from. Pass it as --model.init_from."
            )
        _check_same(str(path), phase, checkpoint[KEY])
        if (processes := resume.get("processes", 1)) != trainer.world_size:
            raise UserError(
                f"checkpoint {path}: {processes} process(es) made it, now there are {trainer.world_size}, and each "
                f"goes on with its own buffer and environment. Run on {processes} again."
            )
        self._side = side_state.read(path, resume["token"], trainer.global_rank)
        for file, rows in zip(metrics_files(trainer), resume["rows"], strict=False):
            file.keep(rows)
        # The streams go on by the phase's clock. Lightning's own count of batches would only have to agree with it,
        # and cannot where a chunk has another length than before; the optimizer's clock is all that must be kept.
        loops = trainer.fit_loop.state_dict()
        loops[OPTIMIZER_CLOCK] = checkpoint["loops"]["fit_loop"][OPTIMIZER_CLOCK]
        checkpoint["loops"]["fit_loop"] = loops

    # ---- when --------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: L.Trainer, phase: Any) -> None:
        self.signals.watch()
        if self._side is not None:
            # not earlier: what prepares a phase may draw, and must find the generators as the first run did
            phase.load_local_state(self._side["phase"])
            phase.data.load_local_state(self._side["data"])
            side_state.set_random_state(self._side["random"])
            self._side = None

    def on_train_batch_end(self, trainer: L.Trainer, phase: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if phase.clock >= phase.total or trainer.should_stop:
            return  # saved in on_train_end, after the last evaluation: Lightning trains no further from here
        stop = trainer.strategy.reduce_boolean_decision(self.signals.received is not None, all=False)
        if stop or phase.clock // self.every > self.saved_at // self.every:
            self._save(trainer, phase, "last")
        if stop:
            raise self._interrupted(phase)

    def on_validation_end(self, trainer: L.Trainer, phase: Any) -> None:
        """Nothing: a phase is evaluated on its own clock, not by Lightning's validation loop."""

    def on_train_end(self, trainer: L.Trainer, phase: Any) -> None:
        self._save(trainer, phase, "last")

    def on_fit_end(self, trainer: L.Trainer, phase: Any) -> None:
        self.signals.release()
        if self.signals.received is not None:
            raise self._interrupted(phase)

    def on_exception(self, trainer: L.Trainer, phase: Any, exception: BaseException) -> None:
        self.signals.release()

    def on_evaluation_begun(self, trainer: L.Trainer, phase: Any) -> None:
        if self.save_best:
            # named by the clock: a resumed run may find that a later one has already become the best
            self.candidate = f"candidate-{phase.clock}"
            self._save(trainer, phase, self.candidate)

    def on_evaluation(self, trainer: L.Trainer, phase: Watched, result: Evaluation) -> None:
        candidate, self.candidate = self.candidate, None
        is_best = result.value > self.best_value
        if is_best:
            self.best_value = result.value
        if candidate is None:
            if is_best and self.save_best:
                self._save(trainer, phase, "best")
            return
        path = self._path(candidate)
        if trainer.is_global_zero and path.exists():  # else it became the best, or went, before the run was resumed
            if is_best:
                os.replace(path, self._path("best"))
            else:
                path.unlink()

    # ---- how ---------------------------------------------------------------------------------------------------

    def _save(self, trainer: L.Trainer, phase: Any, name: str) -> None:
        phase.make_sure()
        check_weights(phase.phase, phase)
        path = self._path(name)
        self.best_model_path = str(path)
        if name == "last":
            self.saved_at = phase.clock
            self._token = trainer.strategy.broadcast(uuid.uuid4().hex[:12])
            self._write_side_state(trainer, phase, path, self._token)
        self._save_checkpoint(trainer, str(path))
        if self._token is not None and trainer.is_global_zero:
            side_state.remove_others(path, self._token)
        self._token = None

    def _write_side_state(self, trainer: L.Trainer, phase: Any, path: Path, token: str) -> None:
        for file in metrics_files(trainer) if trainer.is_global_zero else ():
            file.sync()
        state = {"phase": phase.local_state(), "data": phase.data.local_state(), "random": side_state.random_state()}
        side_state.write(path, token, trainer.global_rank, state)
        trainer.strategy.barrier("o2o side state")

    def _interrupted(self, phase: Watched) -> Interrupted:
        number = self.signals.received or signal.SIGTERM
        self.signals.received = None
        unit = phase.clock_name.replace("_", " ")
        return Interrupted(
            f"{signal.Signals(number).name}: phase {phase.phase} stopped and saved after {phase.clock:,} {unit}. "
            f"Go on with `o2o resume {self._path('last').parents[2]}`.",
            number,
        )

    def _path(self, name: str) -> Path:
        assert self.dirpath is not None
        return Path(self.dirpath) / f"{name}.ckpt"


def _check_same(path: str, phase: Watched, saved: dict[str, Any]) -> None:
    facts = (
        ("algorithm", saved["algorithm"], phase.algorithm),
        ("environment", saved["env_id"], phase.data.env_id),
        ("env_kwargs", saved.get("env_kwargs", {}), phase.data.env_kwargs),
        ("dataset", saved["manifest"].get("sha256"), phase.data.manifest().get("sha256")),
    )
    for name, before, now in facts:
        if before != now:
            raise UserError(
                f"checkpoint {path}: its {name} was {before}, now it is {now}. A run goes on with what it began "
                "with; restore it, or start a new run with --model.init_from."
            )
    if phase.total < phase.clock:
        raise UserError(
            f"checkpoint {path}: the phase has made {phase.clock:,} {phase.clock_name.replace('_', ' ')} already, "
            f"and {phase.total:,} were asked for. Ask for more."
        )
