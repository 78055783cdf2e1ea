"""What a phase leaves in the run directory besides metrics and checkpoints: config, manifest, summary."""

import contextlib
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from o2o_lightning.callbacks.hooks import Watched
from o2o_lightning.callbacks.metrics import metrics_files
from o2o_lightning.checkpoint.io import save_atomically, write_json
from o2o_lightning.checkpoint.run import Busy, add_to_plan, lock, write_config
from o2o_lightning.engine.health import NonFinite
from o2o_lightning.envs.scores import score_or_return
from o2o_lightning.errors import Failure
from o2o_lightning.machine import library_versions
from o2o_lightning.seeds import run_seed

EARLY = 6000  # environment steps within which a hand-over collapses, if it does


class RunDirectory(Callback):
    """Writes ``config.yaml`` and ``manifest.json`` when the phase starts, ``summary.json`` when it has ended.

    Nothing is written before data and networks are ready, so that bad input leaves the directory as it was. ``config``
    is the phase's configuration as YAML, ``command`` what ``o2o fit`` was asked for, kept in the directory's plan.
    """

    def __init__(self, run_dir: str | Path, config: str = "", command: dict[str, Any] | None = None) -> None:
        self.run_dir, self.config, self.command = Path(run_dir), config, command
        self.seconds = 0.0
        self._started = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds + time.monotonic() - self._started}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds = state_dict["seconds"]

    def on_fit_start(self, trainer: L.Trainer, phase: Any) -> None:
        self._started = time.monotonic()
        if trainer.is_global_zero:
            lock(self.run_dir)
            config = self.run_dir / phase.phase / "config.yaml"
            if trainer.ckpt_path is None and config.exists():
                raise Busy(
                    f"--run_dir {self.run_dir}: another process has started phase '{phase.phase}' in it. "
                    "Pass another --run_dir."
                )
            for file in metrics_files(trainer):
                file.begin()
            if self.command is not None:
                add_to_plan(self.run_dir, self.command, phase.data.manifest())
            if trainer.ckpt_path is not None:  # a finished phase that goes on is unfinished until its new end
                (config.parent / "summary.json").unlink(missing_ok=True)
            write_config(config, self.config)
            write_json(self.run_dir / "manifest.json", phase.data.manifest())

    def on_fit_end(self, trainer: L.Trainer, phase: Any) -> None:
        self.seconds += time.monotonic() - self._started
        if trainer.is_global_zero:
            write_json(self.run_dir / phase.phase / "summary.json", summarize(phase, self.seconds))

    def on_exception(self, trainer: L.Trainer, phase: Any, exception: BaseException) -> None:
        if isinstance(exception, NonFinite) and exception.dump:
            with contextlib.suppress(Failure):  # a disk that is full as well must not hide what happened
                save_atomically(self.run_dir / exception.file, exception.dump)


def summarize(phase: Watched, seconds: float) -> dict[str, Any]:
    """A phase's ``summary.json``; scores are raw mean returns where the environment has no reference score."""
    manifest, source = phase.data.manifest(), phase.source
    names = ("phase", "algorithm", "origin")  # of the checkpoint that it started from
    return {
        "phase": phase.phase,
        "algorithm": phase.algorithm,
        "env_id": phase.data.env_id,
        "dataset": manifest.get("source"),
        "dataset_sha256": manifest.get("sha256"),
        "source": None if source is None else {name: getattr(source, name) for name in names},
        "seed": run_seed(),
        "steps": phase.updates,
        "env_steps": phase.env_steps,
        "eval_env_steps": phase.eval_env_steps,
        "seconds": round(seconds, 3),
        "versions": library_versions(),
        "score": score_block(phase),
        **phase.facts(),
    }


def score_block(phase: Any) -> dict[str, Any]:
    """The keys of ``score`` that apply to the phase."""
    curve = phase.curve
    values = [score_or_return(score, return_) for _, return_, score in curve]
    known = [name for name in ("offline", "aligned") if name in phase.returns]
    block = {name: score_or_return(phase.scores.get(name), phase.returns[name]) for name in known}
    block["curve"] = curve
    if values:
        block |= {"final": values[-1], "best": max(values)}
    if phase.clock_name == "env_steps" and len(curve) > 1:
        until, before = max(EARLY, phase.data.budget / 10), phase.data.steps_before_updates
        learned = [(point[0], value) for point, value in zip(curve, values, strict=True) if point[0] > before]
        if learned:
            early = [value for clock, value in learned if clock <= until] or [learned[0][1]]
            block |= dict.fromkeys(("lowest_early", "min_first_tenth"), min(early))  # its name now, and in version 0.1
    return block
