"""``o2o demo``: the whole pipeline on the embedded Hopper data, next to naive fine-tuning of the same policy."""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from o2o_lightning.cli.show import say
from o2o_lightning.errors import UserError


def main(argv: list[str]) -> int:
    """Runs ``o2o demo``."""
    parser = argparse.ArgumentParser("o2o demo", description=__doc__)
    parser.add_argument("--run_dir", default="demo", help="where results go (default: demo)")
    parser.add_argument("--seed_everything", default="0", help="random seed (default: 0)")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides, e.g. steps.env=10000")
    arguments = parser.parse_args(argv)
    run_dir = Path(arguments.run_dir)
    if (run_dir / "summary.json").exists():
        summary = _summary_of_a_demo(run_dir)
        say(f"{run_dir}/summary.json exists: showing it. Remove {run_dir} to run the demo again.")
        _show(summary, run_dir)
        return 0
    # One thread a process: both arms run side by side, and results do not depend on the number of cores.
    os.environ["OMP_NUM_THREADS"] = "1"
    started = time.monotonic()
    overrides = ["experiment=quick", *arguments.overrides]
    rest = ["--seed_everything", arguments.seed_everything]
    full, naive = run_dir / "o2td3", run_dir / "direct"
    _check_same(full, overrides, rest)
    _run("offline", [*overrides, *rest], full)
    checkpoint = str(full / "offline" / "checkpoints" / "last.ckpt")
    with _beside(["online=td3", *overrides, *rest, "--model.init_from", checkpoint], naive) as direct:
        try:
            for phase in ("reevaluate", "align", "online"):
                _run(phase, [*overrides, *rest, "--model.init_from", checkpoint], full)
                checkpoint = str(full / phase / "checkpoints" / "last.ckpt")
        except BaseException:
            direct.terminate()
            raise
        if direct.wait() != 0:
            raise UserError(f"demo: the naive run failed; {naive}.log says why.")
    _finish(run_dir, {"o2td3": full, "direct": naive}, time.monotonic() - started)
    return 0


def _command(phase: str, choices: list[str], run_dir: Path) -> list[str]:
    """What starts the phase, or goes on with it where an earlier demo was interrupted."""
    begun = run_dir / phase
    if begun.exists() and any(begun.iterdir()):
        return ["resume", str(run_dir)]
    return ["fit", "--phase", phase, *choices, "--run_dir", str(run_dir)]


def _run(phase: str, choices: list[str], run_dir: Path) -> None:
    from o2o_lightning.cli import fit, resume

    if not (run_dir / phase / "summary.json").exists():
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


def _summary_of_a_demo(run_dir: Path) -> dict[str, Any]:
    path = run_dir / "summary.json"
    with contextlib.suppress(ValueError, AttributeError):
        summary: dict[str, Any] = json.loads(path.read_text())
        if {"runs", "seconds"} <= summary.keys():
            return summary
    raise UserError(f"{path}: it is not a demo's. Pass another --run_dir.")


def _finish(run_dir: Path, arms: dict[str, Path], seconds: float) -> None:
    from o2o_lightning.checkpoint.io import write_json
    from o2o_lightning.report.figures import curves
    from o2o_lightning.report.groups import gather
    from o2o_lightning.report.runs import find

    runs = {name: json.loads((path / "online" / "summary.json").read_text()) for name, path in arms.items()}
    # a demo that was interrupted has taken longer than its last command
    seconds = max(seconds, json.loads((arms["o2td3"] / "summary.json").read_text())["seconds"])
    summary = {"seconds": round(seconds, 1), "runs": runs}
    curves(gather(find([*arms.values()])[0]), run_dir / "curve")
    write_json(run_dir / "summary.json", summary)
    _show(summary, run_dir)


def _show(summary: dict[str, Any], run_dir: Path) -> None:
    from o2o_lightning.report.groups import MEASURES

    caption = "; ".join(f"{name.replace('_', ' ')}: {MEASURES[name]}" for name in ("lowest_early", "final"))
    table = Table(title="Fine-tuning the same offline policy (D4RL score)", caption=caption)
    for column in ("method", "offline π_off", "aligned π_on", "lowest early", "final", "best", "env steps"):
        table.add_column(column, justify="left" if column == "method" else "right")
    names = {"o2td3": "O2TD3", "direct": "direct TD3"}
    for name, found in summary["runs"].items():
        score = found["score"]
        aligned = score["aligned"] if name == "o2td3" else None
        cells = [score["offline"], aligned, score.get("lowest_early"), score["final"], score["best"]]
        shown = ["–" if cell is None else f"{cell:.1f}" for cell in cells]
        table.add_row(names[name], *shown, f"{found['env_steps']:,}")
    Console().print(table)
    say(f"{summary['seconds'] / 60:.1f} minutes; curves in {run_dir}/curve.png, numbers in summary.json")
