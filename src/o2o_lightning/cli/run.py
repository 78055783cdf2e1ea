"""Running the phases that were planned, and the run directory that they leave."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from o2o_lightning.checkpoint.io import write_json
from o2o_lightning.checkpoint.run import LOCK, PLAN, Busy, lock, read_plan, read_summary, unlock, write_plan
from o2o_lightning.cli.command import PHASES
from o2o_lightning.cli.estimate import estimate
from o2o_lightning.cli.lightning import Built
from o2o_lightning.cli.outcome import outcome
from o2o_lightning.cli.plan import Step, check
from o2o_lightning.data.module import OfflineData
from o2o_lightning.engine.health import NonFinite
from o2o_lightning.errors import UserError, visible
from o2o_lightning.launch import first_process

LAST = "checkpoints/last.ckpt"
WAITS = (
    "--data.eval_async is left unused, each score decides on the reference policy; --model.reference.mode interval "
    "does not ask for it"
)


def run(steps: list[Step], run_dir: Path, notes: list[str], command: dict[str, Any]) -> None:
    """Runs the planned phases in order; all are built, and so checked, before the first one starts."""
    check_run_dir(run_dir, [step.phase for step in steps])
    built = [step.cli.build(run_dir, step.phase, command) for step in steps]
    check(built)
    say(*notes, *waiting_for_scores(built))
    foresee(command, steps, built)
    before: OfflineData | None = None
    while built:
        phase = built.pop(0)  # what is finished leaves the memory, but for the data that the next one learns from
        if before is not None:
            phase.datamodule.follow(before)
        before = phase.datamodule
        with tidy(phase, run_dir):
            phase.fit()
        write_run_summary(run_dir)
        say(f"{phase.model.phase}: done, {run_dir / phase.model.phase / LAST}")
    if first_process():
        say(*outcome(run_dir))


def foresee(command: dict[str, Any], steps: list[Step], built: list[Built]) -> None:
    """Tells the phases of a long run how long those that follow will take, and has its plan remember it."""
    found = estimate(command, steps)
    for phase in built:
        phase.after = found.after(phase.model.phase)
    if found.phases:
        command["estimate"] = dict(found.phases)
    built[0].forecast = found.line()


def waiting_for_scores(built: list[Built]) -> list[str]:
    """A line for each phase that can't leave its evaluations to the background, as it was asked to."""
    waiting = [phase for phase in built if phase.datamodule.eval_async and phase.model.waits_for_scores]
    return [f"{phase.model.phase}: {WAITS}" for phase in waiting]


@contextlib.contextmanager
def tidy(built: Built, run_dir: Path) -> Iterator[None]:
    """Takes back what loggers and callbacks made, when the phase ends before its first step: bad input leaves nothing.

    The phase's folder was empty or absent before, :func:`check_run_dir` has seen to it.
    """
    folder = (run_dir / built.model.phase).absolute()
    files = [folder.with_name(name) for name in ("manifest.json", PLAN, LOCK)]
    new = [path for path in (*files, folder, *folder.parents) if not path.exists()]
    before = read_plan(run_dir)
    try:
        yield
    except (Busy, NonFinite):
        raise  # what another process writes is not ours, and a batch that was kept is to be looked at
    except BaseException:
        # by the files: with ddp_fork it is another process's phase that has counted
        begun = any(folder.rglob("*.ckpt")) or (folder / "metrics.csv").exists()
        if not begun and built.model.updates == built.model.env_steps == 0 and first_process() and _alone(run_dir):
            write_plan(run_dir, before)
            unlock(run_dir)
            for path in folder.iterdir() if folder.exists() else ():
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
            remove([*(folder.iterdir() if folder.exists() else ()), *new])
        raise


def remove(paths: list[Path]) -> None:
    """Removes files and empty folders, where there are any."""
    for path in paths:
        with contextlib.suppress(OSError):
            path.rmdir() if path.is_dir() else path.unlink()


def _alone(run_dir: Path) -> bool:
    # two runs may have found the directory empty; what the other one has begun is not ours to remove
    with contextlib.suppress(Busy, OSError):
        lock(run_dir)
        return True
    return False


def say(*lines: str) -> None:
    """Lines for the user, on stderr and from one process only."""
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    for line in lines if first_process() else ():
        console.print(visible(line))


def write_run_summary(run_dir: Path) -> None:
    """``RUN_DIR/summary.json``: the last finished phase's facts, with every finished phase's under ``phases``."""
    if not first_process():
        return
    finished = [phase for phase in PHASES if (run_dir / phase / "summary.json").exists()]
    summaries = {phase: read_summary(run_dir / phase) for phase in finished}
    last = list(summaries)[-1]
    seconds = round(sum(summary["seconds"] for summary in summaries.values()), 3)
    write_json(run_dir / "summary.json", {**summaries[last], "seconds": seconds, "phases": summaries})
    shutil.copyfile(run_dir / last / "config.yaml", run_dir / "config.yaml")


def check_run_dir(run_dir: Path, phases: list[str], seeds: list[int] | None = None) -> None:
    """Refuses a directory that cannot be written, or whose phases have run: results are never written over.

    So is one that holds a run of other ``seeds``, or of one.
    """
    nearest = run_dir.absolute()
    while not nearest.exists():
        nearest = nearest.parent
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        what = "cannot be written" if nearest.is_dir() else "is a file, not a directory"
        raise UserError(f"--run_dir {run_dir}: {nearest} {what}. Pass a directory that you may write to.")
    for entry in read_plan(run_dir):
        if (held := entry.get("seeds")) != seeds:
            what = "one seed" if held is None else f"seeds={held}".replace(" ", "")
            raise UserError(f"--run_dir {run_dir}: it holds a run of {what}. Pass another --run_dir.")
    for phase in phases:
        folder = run_dir / phase
        if (folder / "summary.json").exists():
            raise UserError(
                f"--run_dir {run_dir}: its phase '{phase}' is already finished, and results are never written over. "
                "Pass another --run_dir."
            )
        if folder.is_file() or (folder.exists() and any(folder.iterdir())):
            raise UserError(
                f"--run_dir {run_dir}: its phase '{phase}' was started and not finished. "
                f"Go on with `o2o resume {run_dir}`, remove that folder, or pass another --run_dir."
            )
    if first_process() and not read_plan(run_dir):  # another process may see what the first one has just begun
        foreign = [name for name in ("config.yaml", "manifest.json", "summary.json") if (run_dir / name).exists()]
        if foreign:
            raise UserError(
                f"--run_dir {run_dir}: its {foreign[0]} is not of a run of o2o, and nothing is written over. "
                "Pass another --run_dir."
            )
