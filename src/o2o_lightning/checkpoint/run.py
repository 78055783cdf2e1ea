"""A run directory as a whole: who is writing it, and what it was asked to hold.

Texts that a run goes on from carry their SHA-256: ``plan.json`` beside the commands, ``config.yaml`` in its last line.
"""

import hashlib
import json
import os
from itertools import takewhile
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from o2o_lightning.checkpoint.handover import PHASES, check_dataset
from o2o_lightning.checkpoint.io import write_atomically, write_json
from o2o_lightning.errors import UserError, refusing
from o2o_lightning.limits import check_text, read_json

LOCK, PLAN = ".lock", "plan.json"
SEAL = "# sha256 "
_held: dict[Path, FileLock] = {}


def seed_folder(run_dir: Path, seed: int) -> Path:
    """Where one of several seeds of a run keeps what a run of its own would."""
    return run_dir / f"seed-{seed}"


def runs_of(run_dir: Path, entry: dict[str, Any]) -> list[Path]:
    """Where the phases of a plan's ``entry`` are: in the directory itself, or in that of each seed."""
    return [seed_folder(run_dir, seed) for seed in entry["seeds"]] if entry.get("seeds") else [run_dir]


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


def add_to_plan(run_dir: Path, command: dict[str, Any], dataset: dict[str, Any]) -> None:
    """Keeps what ``o2o fit`` was asked for, so that a resumed run knows which phases follow.

    A phase that is begun anew, and those that were to follow it, are the new command's: earlier ones lose them.
    ``dataset``, a manifest, is of the phase that begins; the plan remembers the digest of each that the command names.

    Raises:
        UserError: the dataset's content has changed since the command was first given.
    """
    plan, kept = read_plan(run_dir), []
    known: dict[str, str] = next((entry.get("datasets", {}) for entry in plan if _asks(entry) == _asks(command)), {})
    command = {**_asks(command), "datasets": {**known}}
    if name := dataset.get("source"):
        before = command["datasets"].setdefault(name, dataset["sha256"])
        check_dataset(f"the run in {run_dir}", {"source": name, "sha256": before}, dataset)
    for entry in plan:
        if _asks(entry) == _asks(command):
            write_plan(run_dir, [command if other is entry else other for other in plan])
            return
        phases = [*takewhile(lambda phase: phase not in command["phases"], entry["phases"])]
        kept += [{**entry, "phases": phases}] if phases else []
    write_plan(run_dir, [*kept, command])


def write_plan(run_dir: Path, plan: list[dict[str, Any]]) -> None:
    """Replaces the plan, where there is one or something to plan."""
    if plan or (run_dir / PLAN).exists():
        write_json(run_dir / PLAN, {"commands": plan, "sha256": _digest(json.dumps(plan))})


def read_plan(run_dir: Path) -> list[dict[str, Any]]:
    """The commands that have written to ``run_dir``, oldest first; version 0.1 wrote them without a digest."""
    path = run_dir / PLAN
    if not path.is_file():
        return []
    check_text(path, str(path))
    written = path.read_bytes()
    advice = "Choose another --run_dir; checkpoints of this one can start a run there, --model.init_from."
    with refusing(f"{path}: it is not a plan that o2o wrote", advice):
        found = read_json(written.decode())
        plan = found if isinstance(found, list) else found["commands"]
        keys = {"phase", "phases", "overrides", "options", "cwd"}
        if not all(keys <= set(item) and item["phases"] and {*item["phases"]} <= {*PHASES} for item in plan):
            raise ValueError("its entries are no commands")
        if plan is not found and found["sha256"] != _digest(json.dumps(plan)):
            raise ValueError("it has changed since")
    return list(plan)


def _asks(command: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in command.items() if key != "datasets"}


def read_summary(folder: Path) -> dict[str, Any]:
    """The ``summary.json`` of a run or a phase."""
    path = folder / "summary.json"
    with refusing(f"{path}: it cannot be read", "Restore it, or remove the phase and run it again."):
        check_text(path, str(path))
        return dict(read_json(path.read_text()))


def policy_to_take(phase: Path) -> Path:
    """The checkpoint of a phase's folder to go on with: of the best evaluation, or the last one where none was kept."""
    best = phase / "checkpoints" / "best.ckpt"
    return best if best.exists() else best.with_name("last.ckpt")


def write_config(path: Path, text: str) -> None:
    """Writes a phase's ``config.yaml``."""
    write_atomically(path, f"{text}{SEAL}{_digest(text)}\n".encode())


def read_config(path: Path) -> str:
    """What :func:`write_config` wrote; refused where it has changed, as by hand, since."""
    advice = "Without it the run cannot go on: undo the change, or start a new run with `o2o fit --config`."
    with refusing(f"{path}: it cannot be read", advice):
        check_text(path, str(path))
        text, seal, digest = path.read_text().rpartition(SEAL)
        if not seal or digest.strip() != _digest(text):
            raise ValueError("it is cut off, or has changed since o2o wrote it")
    return text


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
