"""``o2o resume``: goes on with a run that stopped, as if it had not."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import yaml

from o2o_lightning.cli.compose import Command, split
from o2o_lightning.cli.launch import first_process
from o2o_lightning.cli.run import LAST, say, write_run_summary
from o2o_lightning.errors import UserError

USAGE = """\
o2o resume RUN_DIR [options]

Goes on with the phase that was interrupted, from its last checkpoint, and then with the phases that follow.
The result is that of a run that was never interrupted, bit for bit (same machine, libraries and threads).

options that may change on the way, e.g. `--data.env_steps 200000`:
  {safe}
"""
# What changes how long a run takes and how it is watched; anything else would make it another run.
LENGTH = ("trainer.max_steps", "data.env_steps")
SAFE = (
    *LENGTH,
    "trainer.logger",
    "trainer.log_every_n_steps",
    "trainer.enable_progress_bar",
    "data.eval_every",
    "data.eval_every_updates",
    "data.memmap",
    "data.memory_limit_gb",
)


def main(argv: list[str]) -> int:
    """Runs ``o2o resume``."""
    from o2o_lightning.checkpoint.io import remove_temporaries
    from o2o_lightning.checkpoint.run import lock, read_plan

    if not argv or argv[0].startswith("-"):
        print(USAGE.format(safe=", ".join(f"--{name}" for name in SAFE)), end="")
        return 0 if argv and argv[0] in ("-h", "--help") else 2
    # a process that Lightning starts runs this command again, from where the phase runs
    inherited = None if first_process() else os.environ.get("O2O_RUN_DIR")
    run_dir, changes = Path(inherited or argv[0]).resolve(), _changes(argv[1:])
    os.environ["O2O_RUN_DIR"] = str(run_dir)
    plan = read_plan(run_dir)
    if not plan:
        raise UserError(f"{argv[0]}: no run of o2o is in it. Pass the --run_dir of one that had begun.")
    if first_process():
        lock(run_dir)
        remove_temporaries(run_dir)
    went_on = False
    for entry in plan:
        if Path(entry["cwd"]).is_dir():
            os.chdir(entry["cwd"])  # paths of the command are relative to where it was given
        went_on |= _resume_command(entry, run_dir, changes)
    if not went_on and any(name in LENGTH for name, _ in changes):
        _continue(plan[-1]["phases"][-1], run_dir, changes)
        if first_process():
            write_run_summary(run_dir)
        went_on = True
    if not went_on:
        say(f"{argv[0]}: nothing to go on with, all of it is finished.")
    return 0


def _resume_command(entry: dict[str, Any], run_dir: Path, changes: list[tuple[str, list[str]]]) -> bool:
    """Runs what is left of one ``o2o fit``; whether anything was."""
    from o2o_lightning.cli.plan import plan as plan_of

    left = [phase for phase in entry["phases"] if not (run_dir / phase / "summary.json").exists()]
    kept = [token for name, tokens in changes if name not in LENGTH for token in tokens]
    command = Command(entry["phase"], None, entry["overrides"], [*entry["options"], *kept])
    for phase in left:
        if (run_dir / phase / LAST).exists():
            _continue(phase, run_dir, changes)
        else:
            # killed before its first checkpoint: nothing of it is worth keeping
            if first_process():
                shutil.rmtree(run_dir / phase, ignore_errors=True)
            step = next(step for step in plan_of(command)[0] if step.phase == phase)
            step.cli.build(run_dir, phase, entry).fit()
        if first_process():
            write_run_summary(run_dir)
    if not left and first_process():
        write_run_summary(run_dir)  # the kill may have come just before
    return bool(left)


def _continue(phase: str, run_dir: Path, changes: list[tuple[str, list[str]]]) -> None:
    """Goes on with one phase from its last checkpoint."""
    from o2o_lightning.checkpoint.handover import read_checkpoint, read_handover
    from o2o_lightning.cli.lightning import build
    from o2o_lightning.cli.loggers import going_on

    checkpoint, written = run_dir / phase / LAST, run_dir / phase / "config.yaml"
    read_handover(checkpoint, (phase,), "o2o resume")
    try:
        config = yaml.safe_load(written.read_text())
        data_class = config["data"]["class_path"]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise UserError(f"{written}: it cannot be read ({error}). Without it the run cannot go on.") from error
    found = read_checkpoint(checkpoint)
    clock = found["o2o_progress"]["env_steps" if phase == "online" else "updates"]
    logger = config.get("trainer", {}).get("logger")
    if logger is not None:
        config["trainer"]["logger"] = going_on(logger, clock, found.get("o2o_resume", {}).get("loggers", []))
    say(f"{phase}: going on from {checkpoint}")
    options = [token for name, tokens in changes if _takes(data_class, name) for token in tokens]
    build(config, options, run_dir, phase).fit(checkpoint)


def _changes(argv: list[str]) -> list[tuple[str, list[str]]]:
    """The options of the command line by name; :class:`UserError` for one that would make it another run."""
    from o2o_lightning.cli.plan import grouped

    command = split(argv)
    if command.overrides:
        raise UserError(f"'{command.overrides[0]}': a resumed run keeps its configuration; {_only()}")
    changes = []
    for tokens in grouped(command.options):
        name = tokens[0].removeprefix("--").partition("=")[0].replace(".init_args.", ".")
        if not any(name == safe or (safe == "trainer.logger" and name.startswith(safe)) for safe in SAFE):
            raise UserError(
                f"--{name}: it would make another run of this one; {_only()} For a new run from this policy use "
                "`o2o fit --model.init_from CKPT`."
            )
        changes.append((name, tokens))
    return changes


def _only() -> str:
    return f"only {', '.join(f'--{name}' for name in SAFE)} may change."


def _takes(data_class: str, name: str) -> bool:
    from o2o_lightning.cli.lightning import accepts

    match = re.match(r"data\.(\w+)$", name)
    return match is None or accepts(data_class, match.group(1))
