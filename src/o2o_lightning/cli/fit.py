"""``o2o fit``: one phase, or all of them one after the other."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from o2o_lightning.cli.compose import Command, compose, lightning_config, split
from o2o_lightning.errors import UserError

LAST = "checkpoints/last.ckpt"


def main(argv: list[str]) -> int:
    """Runs ``o2o fit``."""
    command = split(argv)
    composed = compose(command.phase if command.phase != "all" else "offline", command)
    phases = list(composed["phases"]) if command.phase == "all" else [command.phase]
    if any(token.startswith("--print_config") for token in command.options):
        return _print_config(command, phases)
    phases = _skip_empty(command, phases)
    if not phases:
        return 0
    run_dir = Path(command.run_dir or time.strftime("runs/%Y-%m-%d_%H-%M-%S"))
    check_run_dir(run_dir, phases)
    run_phases(command, phases, run_dir)
    return 0


def run_phases(command: Command, phases: list[str], run_dir: Path) -> dict[str, Any]:
    """Runs ``phases`` in order, handing each one's last checkpoint on; returns the last summary."""
    console = Console(stderr=True, highlight=False)
    options = options_by_phase(command, phases)
    for phase in phases:
        run_phase(phase, command, phases, options[phase], run_dir)
        if int(os.environ.get("LOCAL_RANK", "0")) == 0:
            console.print(f"{phase}: done, {run_dir / phase / LAST}", soft_wrap=True)
    return write_run_summary(run_dir, phases)


def run_phase(phase: str, command: Command, phases: list[str], options: list[str], run_dir: Path) -> None:
    """Builds one phase of ``phases`` from its composed configuration and runs it from its beginning."""
    from o2o_lightning.cli.lightning import build

    config = lightning_config(compose(phase, command))
    at = phases.index(phase)
    if at > 0:
        # relative to the run, so that a directory that was moved can still be resumed
        config["model"].setdefault("init_args", {})["init_from"] = f"$RUN_DIR/{phases[at - 1]}/{LAST}"
    plan = {"phases": phases, "overrides": command.overrides, "options": command.options, "cwd": os.getcwd()}
    built = build(config, options, run_dir, phase, plan)
    built.trainer.fit(built.model, datamodule=built.datamodule)


def _skip_empty(command: Command, phases: list[str]) -> list[str]:
    """Without the phases that the method has nothing to do in: their configuration is a note that says why."""
    kept = []
    for phase in phases:
        model = compose(phase, command)["model"]
        if "note" not in model:
            kept.append(phase)
        elif int(os.environ.get("LOCAL_RANK", "0")) == 0:
            Console(stderr=True, highlight=False).print(f"{phase}: {model['note']}", soft_wrap=True)
    return kept


def write_run_summary(run_dir: Path, phases: list[str]) -> dict[str, Any]:
    """``RUN_DIR/summary.json``: the last phase's facts, with every phase's under ``phases``."""
    from o2o_lightning.checkpoint.io import write_json

    summaries = {phase: json.loads((run_dir / phase / "summary.json").read_text()) for phase in phases}
    last = summaries[phases[-1]]
    if len(phases) == 1 and (run_dir / "summary.json").exists():
        return dict(last)
    total = {**last, "seconds": round(sum(s["seconds"] for s in summaries.values()), 3)}
    write_json(run_dir / "summary.json", {**total, "phases": summaries})
    shutil.copyfile(run_dir / phases[-1] / "config.yaml", run_dir / "config.yaml")
    return dict(total)


def check_run_dir(run_dir: Path, phases: list[str]) -> None:
    """Refuses a directory that cannot be written, or whose phases have run: results are never written over."""
    nearest = run_dir.absolute()
    while not nearest.exists():
        nearest = nearest.parent
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        what = "cannot be written" if nearest.is_dir() else "is a file, not a directory"
        raise UserError(f"--run_dir {run_dir}: {nearest} {what}. Pass a directory that you may write to.")
    for phase in phases:
        folder = run_dir / phase
        if (folder / "summary.json").exists():
            raise UserError(
                f"--run_dir {run_dir}: its phase '{phase}' is already finished, and results are never written over. "
                "Pass another --run_dir."
            )
        if folder.exists() and any(folder.iterdir()):
            raise UserError(
                f"--run_dir {run_dir}: its phase '{phase}' was started and not finished. "
                f"Go on with `o2o resume {run_dir}`, remove that folder, or pass another --run_dir."
            )


def options_by_phase(command: Command, phases: list[str]) -> dict[str, list[str]]:
    """Gives each dotted option to the phases that know it; one that no phase knows goes to all, to be refused."""
    from o2o_lightning.cli.lightning import accepts

    chosen: dict[str, list[str]] = {phase: [] for phase in phases}
    configs = {phase: lightning_config(compose(phase, command)) for phase in phases}
    for option in grouped(command.options):
        match = re.match(r"--(model|data)\.(?:init_args\.)?(\w+)", option[0])
        takers = phases
        if match and len(phases) > 1:
            part, name = match.groups()
            takers = [phase for phase in phases if accepts(configs[phase][part]["class_path"], name)] or phases
            if (part, name) == ("model", "init_from"):
                takers = [phases[0]]
        for phase in takers:
            chosen[phase] += option
    return chosen


def grouped(options: list[str]) -> list[list[str]]:
    """Options, each with its values."""
    groups: list[list[str]] = []
    for token in options:
        if token.startswith("--") or not groups:
            groups.append([token])
        else:
            groups[-1].append(token)
    return groups


def _print_config(command: Command, phases: list[str]) -> int:
    from o2o_lightning.cli.lightning import dump

    if len(phases) > 1:
        raise UserError("--print_config prints one phase: add --phase offline, reevaluate, align or online.")
    config = lightning_config(compose(phases[0], command))
    options = [token for token in command.options if not token.startswith("--print_config")]
    print(dump(config, options), end="")
    return 0
