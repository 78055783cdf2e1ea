"""``o2o demo``: the whole pipeline on the embedded Hopper data, next to naive fine-tuning of the same policy."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from o2o_lightning.errors import UserError


def main(argv: list[str]) -> int:
    """Runs ``o2o demo``."""
    parser = argparse.ArgumentParser("o2o demo", description=__doc__)
    parser.add_argument("--run_dir", default="demo", help="where results go (default: demo)")
    parser.add_argument("--seed_everything", default="0", help="random seed (default: 0)")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides, e.g. steps.env=10000")
    arguments = parser.parse_args(argv)
    run_dir, console = Path(arguments.run_dir), Console()
    if (run_dir / "summary.json").exists():
        console.print(f"{run_dir}/summary.json exists: showing it. Remove {run_dir} to run the demo again.")
        _show(json.loads((run_dir / "summary.json").read_text()), run_dir, console)
        return 0
    # One thread a process: both arms run side by side, and results do not depend on the number of cores.
    os.environ["OMP_NUM_THREADS"] = "1"
    started = time.monotonic()
    overrides = ["experiment=quick", *arguments.overrides]
    rest = ["--seed_everything", arguments.seed_everything]
    full, naive = run_dir / "o2td3", run_dir / "direct"
    _fit(["--phase", "offline", *overrides, *rest, "--run_dir", str(full)])
    policy = ["--model.init_from", str(full / "offline" / "checkpoints" / "last.ckpt")]
    with _beside(["--phase", "online", "online=td3", *overrides, *rest, *policy, "--run_dir", str(naive)]) as direct:
        try:
            checkpoint = policy[1]
            for phase in ("reevaluate", "align", "online"):
                options = ["--model.init_from", checkpoint, "--run_dir", str(full)]
                _fit(["--phase", phase, *overrides, *rest, *options])
                checkpoint = str(full / phase / "checkpoints" / "last.ckpt")
        except BaseException:
            direct.terminate()
            raise
        if direct.wait() != 0:
            raise UserError(f"demo: the naive run failed; {naive}.log says why.")
    _finish(run_dir, {"o2td3": full, "direct": naive}, time.monotonic() - started, console)
    return 0


def _fit(argv: list[str]) -> None:
    from o2o_lightning.cli import fit

    fit.main(argv)


def _beside(argv: list[str]) -> subprocess.Popen[bytes]:
    log = Path(argv[-1] + ".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        command = [sys.executable, "-m", "o2o_lightning.cli.main", "fit", *argv]
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)


def _finish(run_dir: Path, arms: dict[str, Path], seconds: float, console: Console) -> None:
    from o2o_lightning.checkpoint.io import write_json
    from o2o_lightning.report.curve import plot_curves

    summaries: dict[str, Any] = {
        name: json.loads((path / "online" / "summary.json").read_text()) for name, path in arms.items()
    }
    summary = {"seconds": round(seconds, 1), "runs": summaries}
    curves = {name: found["score"]["curve"] for name, found in summaries.items()}
    title = f"{summaries['o2td3']['env_id']}, {summaries['o2td3']['dataset']}"
    plot_curves(curves, run_dir / "curve.png", summaries["o2td3"]["score"]["offline"], title, "D4RL score")
    write_json(run_dir / "summary.json", summary)
    _show(summary, run_dir, console)


def _show(summary: dict[str, Any], run_dir: Path, console: Console) -> None:
    table = Table(title="Fine-tuning the same offline policy (D4RL score)")
    for column in ("method", "offline π_off", "aligned π_on", "lowest early", "final", "best", "env steps"):
        table.add_column(column, justify="left" if column == "method" else "right")
    names = {"o2td3": "O2TD3", "direct": "direct TD3"}
    for name, found in summary["runs"].items():
        score = found["score"]
        early = min(value for step, _, value in score["curve"] if step > 0)
        cells = [score["offline"], score["aligned"] if name == "o2td3" else None, early, score["final"], score["best"]]
        shown = ["–" if cell is None else f"{cell:.1f}" for cell in cells]
        table.add_row(names[name], *shown, f"{found['env_steps']:,}")
    console.print(table)
    console.print(f"{summary['seconds'] / 60:.1f} minutes; curves in {run_dir}/curve.png, numbers in summary.json")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
