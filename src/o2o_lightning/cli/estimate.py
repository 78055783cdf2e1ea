"""How long a run will take on this machine: every phase of it is rehearsed for a few updates, in another process."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from o2o_lightning.cli.command import Command, split
from o2o_lightning.cli.compose import compose
from o2o_lightning.cli.plan import Step
from o2o_lightning.launch import first_process, launched_with_others
from o2o_lightning.limits import read_json
from o2o_lightning.report.page import duration

LONG = 50_000  # updates and environment steps of a run that is worth the seconds of an estimate
UPDATES, ENV_STEPS, EPISODES = 64, 200, 10  # of a rehearsal
PATIENCE = 300  # seconds
HORIZON = 1000  # most steps of an episode, where nobody knows
QUICK = "experiment=quick"
PACE = "o2o_lightning.callbacks.pace.Pace"
NEVER = 1_000_000


@dataclass(frozen=True)
class Work:
    """What a phase has to do.

    Attributes:
        steps: of its clock: updates, or environment steps.
        episodes: of all its evaluations.
        before: environment steps before the first update.
        rollout: environment steps between two rounds of updates of an on-policy method, 0 of any other.
        chunk: updates that are made at once.
    """

    steps: int
    episodes: int
    before: int = 0
    rollout: int = 0
    chunk: int = 16


@dataclass(frozen=True)
class Estimate:
    """Seconds by phase, in their order; None for what a few steps can't tell. Empty: nothing was measured.

    ``quick``: seconds that ``experiment=quick`` would take, where it is another run.
    """

    phases: Mapping[str, float | None]
    quick: float | None = None

    @property
    def total(self) -> float | None:
        """Seconds of all phases."""
        return _sum([*self.phases.values()]) if self.phases else None

    def after(self, phase: str) -> float | None:
        """Seconds of all phases that follow."""
        names = [*self.phases]
        return _sum([self.phases[name] for name in names[names.index(phase) + 1 :]]) if phase in names else None

    def line(self) -> str | None:
        """What the user is told, where anything was measured."""
        known = {name: seconds for name, seconds in self.phases.items() if seconds is not None}
        if not known:
            return None
        total = sum(known.values())
        each = ", ".join(f"{name} {duration(value)}" for name, value in known.items())
        line = f"about {duration(total)} on this machine" + (f": {each}" if len(self.phases) > 1 else "")
        line += "".join(f", and {name}, of which a few steps can't tell" for name in self.phases if name not in known)
        shorter = self.quick is not None and self.quick < total
        return f"{line}; with {QUICK} about {duration(self.quick)}" if self.quick and shorter else line


def estimate(entry: Mapping[str, Any], steps: Sequence[Step]) -> Estimate:
    """How long a long run will take; empty for a short one, or where a rehearsal could not be.

    Args:
        entry: what is run, as a run directory's plan remembers it.
        steps: its phases.
    """
    if sum(_work(step.cli.config).steps for step in steps) < LONG:
        return Estimate({})
    return measured(split(["--phase", entry["phase"], *entry["overrides"], *entry["options"]]), steps)


def measured(command: Command, steps: Sequence[Step]) -> Estimate:
    """The same of any run: of the ``command`` with those ``steps``."""
    if not all(_measurable(step.cli.config) for step in steps):
        return Estimate({})
    work = {step.phase: _work(step.cli.config) for step in steps}
    paces = _rehearsed(command, work)
    seconds = {phase: _seconds(paces.get(phase, ()), found, found.steps) for phase, found in work.items()}
    return Estimate(seconds, _quick(command, work, paces))


def _work(config: Any) -> Work:
    data = config["data.init_args"]
    online = "env_steps" in data
    steps = data["env_steps"] if online else config["trainer.max_steps"]
    every = data["eval_every" if online else "eval_every_updates"]
    evaluations = (steps // every if every else 0) + 1
    rollout = min(data.get("rollout", 0), steps)
    before = min(data.get("warmup_steps", 0), steps)
    return Work(steps, evaluations * data["eval_episodes"], before, rollout, data["chunk"])


def _measurable(config: Any) -> bool:
    """Whether one process alone trains, and shows how far it is; compiling would take longer than what it measures."""
    alone = str(config["trainer.devices"]) in ("auto", "1") and config["trainer.num_nodes"] == 1
    shown = config["trainer.enable_progress_bar"] is not False
    compiled = config["model.init_args.compile"] is True
    return alone and shown and not compiled and first_process() and not launched_with_others()


def _rehearsed(command: Command, work: Mapping[str, Work]) -> dict[str, list[dict[str, Any]]]:
    """What :class:`o2o_lightning.callbacks.pace.Pace` found of each phase, for every seed; nothing where it failed."""
    with TemporaryDirectory() as folder:
        pace = Path(folder) / "pace.jsonl"
        argv = ["fit", f"--phase={command.phase}", *command.overrides, *command.tokens, *_short(work, pace)]
        line = [sys.executable, "-m", "o2o_lightning.cli.main", *argv, f"--run_dir={folder}/run"]
        environment = {name: value for name, value in os.environ.items() if name != "O2O_RUN_DIR"}
        try:
            subprocess.run(line, capture_output=True, env=environment, timeout=PATIENCE, check=True)
        except (subprocess.SubprocessError, OSError):
            return {}  # the run itself says what is wrong with it
        paces: dict[str, list[dict[str, Any]]] = {}
        for text in pace.read_text().splitlines():
            paces.setdefault((found := read_json(text))["phase"], []).append(found)
        return paces


def _short(work: Mapping[str, Work], pace: Path) -> list[str]:
    """Options that make a rehearsal of a run: they come last, and win."""
    options = [
        "--trainer.logger=false", "--trainer.enable_progress_bar=false", "--trainer.profiler=null",
        "--trainer.callbacks=null", f"--trainer.callbacks={PACE}", f"--trainer.callbacks.path={pace}",
        f"--data.eval_every_updates={NEVER}", f"--data.eval_episodes={EPISODES}",
        "--data.env_process=false",  # whose processes take longer to start than a rehearsal to run
    ]  # fmt: skip
    for phase, found in work.items():
        options.append(f"--{phase}.data.chunk={min(found.chunk, UPDATES // 16)}")  # recordings are soon made
        if phase == "online":
            steps = found.rollout or min(found.before + ENV_STEPS, found.steps)
            options += [f"--{phase}.data.env_steps={steps}", f"--{phase}.data.eval_every={steps * NEVER}"]
            options += [f"--{phase}.trainer.callbacks.whole=true"] if found.rollout else []
        else:
            options.append(f"--{phase}.trainer.max_steps={min(found.steps, UPDATES)}")
    return options


def _seconds(paces: Sequence[Mapping[str, Any]], work: Work, steps: int) -> float | None:
    """Of so many ``steps`` of a phase: all seeds' updates come between two of a seed, their evaluations one by one."""
    if not paces or any(pace["step"] is None for pace in paces):
        return None
    played = sum((pace["evaluation"] or 0.0) * (pace["horizon"] or HORIZON) for pace in paces)
    return float(steps * max(pace["step"] for pace in paces) + played * work.episodes * steps / work.steps)


def _quick(
    command: Command, work: Mapping[str, Work], paces: Mapping[str, Sequence[Mapping[str, Any]]]
) -> float | None:
    """Seconds with the counts of ``experiment=quick``, where no experiment is chosen."""
    if command.phase != "all" or command.overridden("experiment"):
        return None
    counts = compose("offline", Command(overrides=[QUICK]))["steps"]
    names = {"online": "env"}
    return _sum(
        [_seconds(paces.get(phase, ()), found, counts[names.get(phase, phase)]) for phase, found in work.items()]
    )


def _sum(parts: Sequence[float | None]) -> float | None:
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None
