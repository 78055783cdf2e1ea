"""``o2o fit``: one phase, or all of them one after the other."""

from __future__ import annotations

import os
import time
from pathlib import Path

from o2o_lightning.cli.command import PHASES, split
from o2o_lightning.cli.compose import infer_dataset
from o2o_lightning.errors import UserError
from o2o_lightning.launch import first_process, launched_with_others


def main(argv: list[str]) -> int:
    """Runs ``o2o fit``."""
    command = split(argv)
    wants_help = bool(command.named("help"))
    if not argv or (wants_help and command.phase == "all"):
        from o2o_lightning.cli.help import fit_help

        print(fit_help(), end="")
        return 0
    # the help needs none of what these import
    from o2o_lightning.cli.plan import phase_help, plan
    from o2o_lightning.cli.run import run, say

    if wants_help:
        phase_help(command)
        return 0
    printing = command.named("print_config")
    command = command.without("print_config")
    if printing and command.phase == "all":
        raise UserError(f"--print_config prints one phase. Add --phase {', '.join(PHASES)}.")
    if printing and printing[-1].value is not None:
        raise UserError(f"{printing[-1].tokens[0]}: it takes no value. Write `--print_config`.")
    steps, notes = plan(command)
    if printing:
        steps = [step for step in steps if step.phase == command.phase]
        print(*(step.cli.written() for step in steps), sep="", end="")
    if printing or not steps:
        say(*notes)
        return 0
    guess = infer_dataset(command)[1]
    record = {"phase": command.phase, "phases": [step.phase for step in steps], "overrides": command.overrides}
    record |= {"options": command.tokens, "cwd": os.getcwd()}
    run(steps, Path(command.run_dir or _new_run_dir()), [*notes, *([guess] if guess else [])], record)
    return 0


def _new_run_dir() -> str:
    # DDP's children run this command again, and must not choose for themselves
    inherited = None if first_process() else os.environ.get("O2O_RUN_DIR")
    if inherited is None and launched_with_others():
        raise UserError("--run_dir: torchrun or SLURM runs this command several times. Name one directory for all.")
    os.environ["O2O_RUN_DIR"] = inherited or time.strftime("runs/%Y-%m-%d_%H-%M-%S")
    return os.environ["O2O_RUN_DIR"]
