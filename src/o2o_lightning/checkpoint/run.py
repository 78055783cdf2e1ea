"""A run directory as a whole: who is writing it, and what it was asked to hold."""

import json
import os
from itertools import takewhile
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from o2o_lightning.checkpoint.handover import PHASES
from o2o_lightning.checkpoint.io import write_json
from o2o_lightning.errors import UserError

LOCK, PLAN = ".lock", "plan.json"
_held: dict[Path, FileLock] = {}


class Busy(UserError):
    """Another process is writing to the directory: nothing in it is ours."""


def lock(run_dir: str | Path) -> None:
    """Takes the directory until this process ends, however it ends; again is nothing.

    Raises:
        UserError: another process has it.
    """
    run_dir = Path(run_dir).resolve()
    if run_dir in _held:
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    file = run_dir / LOCK
    held = FileLock(file, thread_local=False)
    try:
        held.acquire(blocking=False)
    except Timeout as error:
        holder = file.read_text().strip() or "another process"
        raise Busy(
            f"--run_dir {run_dir}: {holder} is writing to it. Wait for its end, or pass another --run_dir."
        ) from error
    file.write_text(f"process {os.getpid()}")
    _held[run_dir] = held


def unlock(run_dir: str | Path) -> None:
    """Gives the directory back before the process ends."""
    held = _held.pop(Path(run_dir).resolve(), None)
    if held is not None:
        held.release()


def add_to_plan(run_dir: Path, command: dict[str, Any]) -> None:
    """Keeps what ``o2o fit`` was asked for, so that a resumed run knows which phases follow.

    A phase that is begun anew, and those that were to follow it, are the new command's: earlier ones lose them.
    """
    plan = read_plan(run_dir)
    if command in plan:
        return
    kept = []
    for entry in plan:
        phases = [*takewhile(lambda phase: phase not in command["phases"], entry["phases"])]
        kept += [{**entry, "phases": phases}] if phases else []
    write_plan(run_dir, [*kept, command])


def write_plan(run_dir: Path, plan: list[dict[str, Any]]) -> None:
    """Replaces the plan, where there is one or something to plan."""
    if plan or (run_dir / PLAN).exists():
        write_json(run_dir / PLAN, plan)


def read_plan(run_dir: Path) -> list[dict[str, Any]]:
    """The commands that have written to ``run_dir``, oldest first."""
    path = run_dir / PLAN
    if not path.is_file():
        return []
    try:
        plan = json.loads(path.read_text())
        keys = {"phase", "phases", "overrides", "options", "cwd"}
        valid = all(keys <= set(item) and item["phases"] and {*item["phases"]} <= {*PHASES} for item in plan)
    except (ValueError, TypeError):
        valid = False
    if not valid:
        raise UserError(f"{path}: it is not a plan that o2o wrote. Remove the directory and run again.")
    return list(plan)
