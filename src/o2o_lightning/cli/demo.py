"""``o2o demo``: the whole pipeline on the embedded Hopper data, next to naive fine-tuning of the same policy."""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from o2o_lightning.cli.arguments import Parser
from o2o_lightning.cli.show import say
from o2o_lightning.errors import UserError

if TYPE_CHECKING:
    from o2o_lightning.report.groups import Group

ENOUGH = 420  # seconds, so that a demo stays under eight minutes
COUNTS = ("experiment=quick", "hand_over.utd=1")  # the default's four updates a step would take as long as all the rest


def main(argv: list[str]) -> int:
    """Runs ``o2o demo``."""
    parser = Parser("o2o demo", description=__doc__)
    parser.add_argument("--run_dir", default="demo", help="where results go (default: demo)")
    parser.add_argument("--seed_everything", type=int, default=0, help="random seed, the first of several (default: 0)")
    parser.add_argument("--seeds", type=int, help="how many, all at once (default: three where time allows, else one)")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides, e.g. steps.env=10000")
    arguments = parser.parse_args(argv)
    if arguments.seeds is not None and arguments.seeds < 1:
        raise UserError(f"--seeds {arguments.seeds}: at least one is needed.")
    run_dir = Path(arguments.run_dir)
    if (run_dir / "summary.json").exists():
        seconds = _seconds_of_a_demo(run_dir)
        say(f"{run_dir}/summary.json exists: showing it. Remove {run_dir} to run the demo again.")
        _show(_arms(run_dir), run_dir, seconds)
        return 0
    # One thread a process: both arms run side by side, and results do not depend on the number of cores.
    os.environ["OMP_NUM_THREADS"] = "1"
    started, first = time.monotonic(), arguments.seed_everything
    overrides, rest = [*COUNTS, *arguments.overrides], ["--seed_everything", str(first)]
    full, naive = run_dir / "o2td3", run_dir / "direct"
    begins, seeds = full, arguments.seeds or _as_many_as_time_allows(full, overrides)
    if seeds > 1:
        overrides, rest = [*overrides, f"seeds={[*range(first, first + seeds)]}".replace(" ", "")], []
        begins = full / "seed-$SEED"
    _check_same(full, overrides, rest)
    _run("offline", [*overrides, *rest], full)
    checkpoint = str(begins / "offline" / "checkpoints" / "last.ckpt")
    with _beside(["online=td3", *overrides, *rest, "--model.init_from", checkpoint], naive) as direct:
        try:
            for phase in ("reevaluate", "align", "online"):
                _run(phase, [*overrides, *rest, "--model.init_from", checkpoint], full)
                checkpoint = str(begins / phase / "checkpoints" / "last.ckpt")
        except BaseException:
            direct.terminate()
            raise
        if direct.wait() != 0:
            raise UserError(f"demo: the naive run failed; {naive}.log says why.")
    _finish(run_dir, time.monotonic() - started)
    return 0


def _as_many_as_time_allows(full: Path, overrides: list[str]) -> int:
    """Three seeds where this machine makes them in time, else one; those of a demo that has begun."""
    from o2o_lightning.checkpoint.run import read_plan
    from o2o_lightning.cli.command import split
    from o2o_lightning.cli.estimate import measured
    from o2o_lightning.cli.plan import plan
    from o2o_lightning.report.page import duration

    if begun := read_plan(full):
        return len(begun[0].get("seeds") or (0,))
    command = split([*overrides, "seeds=3"])
    seconds = measured(command, plan(command.of_seed(0))[0]).total
    seeds = 3 if seconds is not None and seconds <= ENOUGH else 1
    if seconds is not None:
        say(f"three seeds would take about {duration(seconds)} on this machine: it is {seeds} (--seeds N)")
    return seeds


def _places(phase: str, run_dir: Path) -> list[Path]:
    """Where a phase is: in the run's folder, or in that of each seed."""
    from o2o_lightning.checkpoint.run import read_plan, runs_of

    return [folder / phase for folder in runs_of(run_dir, next(iter(read_plan(run_dir)), {}))]


def _command(phase: str, choices: list[str], run_dir: Path) -> list[str]:
    """What starts the phase, or goes on with it where an earlier demo was interrupted."""
    if any(begun.exists() and any(begun.iterdir()) for begun in _places(phase, run_dir)):
        return ["resume", str(run_dir)]
    return ["fit", "--phase", phase, *choices, "--run_dir", str(run_dir)]


def _run(phase: str, choices: list[str], run_dir: Path) -> None:
    from o2o_lightning.cli import fit, resume

    if not all((place / "summary.json").exists() for place in _places(phase, run_dir)):
        name, *argv = _command(phase, choices, run_dir)
        (fit if name == "fit" else resume).main(argv)


def _beside(choices: list[str], run_dir: Path) -> subprocess.Popen[bytes]:
    log = Path(f"{run_dir}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        command = [sys.executable, "-m", "o2o_lightning.cli.main", *_command("online", choices, run_dir)]
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)


def _check_same(full: Path, overrides: list[str], rest: list[str]) -> None:
    """A demo goes on with its own choices only."""
    from o2o_lightning.checkpoint.run import read_plan

    plan = read_plan(full)
    if plan and (plan[0]["overrides"], plan[0]["options"]) != (overrides, rest):
        raise UserError(f"--run_dir {full.parent}: a demo with other choices has begun in it. Pass another --run_dir.")


def _seconds_of_a_demo(run_dir: Path) -> float:
    path = run_dir / "summary.json"
    with contextlib.suppress(ValueError, AttributeError, TypeError):
        summary = json.loads(path.read_text())
        if "runs" in summary:
            return float(summary["seconds"])
    raise UserError(f"{path}: it is not a demo's. Pass another --run_dir.")


def _arms(run_dir: Path) -> "list[Group]":
    from o2o_lightning.report.groups import gather
    from o2o_lightning.report.runs import find

    return gather(find([run_dir / "o2td3", run_dir / "direct"])[0])


def _finish(run_dir: Path, seconds: float) -> None:
    from o2o_lightning.checkpoint.io import write_json
    from o2o_lightning.report.figures import curves
    from o2o_lightning.report.report import facts

    arms = _arms(run_dir)
    # a demo that was interrupted has taken longer than its last command
    seconds = max(seconds, *(run.total("seconds") for arm in arms for run in arm.runs))
    curves(arms, run_dir / "curve")
    write_json(run_dir / "summary.json", {"seconds": round(seconds, 1), "runs": [facts(arm) for arm in arms]})
    _show(arms, run_dir, seconds)


def _show(arms: "list[Group]", run_dir: Path, seconds: float) -> None:
    from o2o_lightning.cli.report import show
    from o2o_lightning.report.groups import MEASURES
    from o2o_lightning.report.report import TITLES

    show(arms)
    for name, meaning in MEASURES.items():
        say(f"{TITLES.get(name, name)}: {meaning}")
    say(f"{seconds / 60:.1f} minutes; curves in {run_dir}/curve.png, numbers in summary.json")
