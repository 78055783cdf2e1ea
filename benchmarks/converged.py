r"""Does ending re-evaluation and alignment at their plateaus cost anything online? The same runs with both rules.

    python benchmarks/converged.py run   --out converged --datasets a.hdf5 b.hdf5 c.hdf5 --seeds 0 1 \
                                         --method o2td3 --steps reevaluate=500000 align=500000 env=100000 \
                                         --options model.compile=true reevaluate.model.hidden=[256,256]
    python benchmarks/converged.py table --out converged

Of each dataset and seed, one offline policy; from it, once with the full counts of `--steps` and once with
`stop=converged` and the same counts as the most. A finished phase is not run again and one that was cut off goes on, so
the same command continues a comparison that died. The table tells both arms' steps, π_on and online curves apart.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import mean
from typing import Any

from o2o_lightning.cli.jobs import finish

ARMS = {"full": "stop=steps", "converged": "stop=converged"}
PHASES = {"o2td3": ("reevaluate", "align", "online"), "o2sac": ("reevaluate", "align", "online"),
          "o2ppo": ("reevaluate", "online")}  # fmt: skip


def main() -> int:
    """Runs one of the two commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    run = commands.add_parser("run")
    run.add_argument("--datasets", nargs="+", required=True, help="files, or names such as embedded:hopper-medium")
    run.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    run.add_argument("--method", choices=PHASES, default="o2td3")
    run.add_argument("--steps", nargs="+", default=[], metavar="PHASE=N", help="as steps.PHASE=N of `o2o fit`")
    run.add_argument(
        "--options", nargs="+", default=[], metavar="[PHASE.]NAME=VALUE", help="as --NAME=VALUE of `o2o fit`"
    )
    table = commands.add_parser("table")
    for command in (run, table):
        command.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    return _run(arguments) if arguments.command == "run" else _table(arguments.out)


def _run(arguments: argparse.Namespace) -> int:
    steps = [f"steps.{step}" for step in arguments.steps]
    failed = []
    for dataset in arguments.datasets:
        for seed in arguments.seeds:
            folder = arguments.out / Path(dataset.split(":")[-1]).stem / f"seed{seed}"
            common = [f"online={arguments.method}", *steps, "--data.dataset", dataset, "--seed_everything", str(seed)]
            start = _finish(folder / "start", "offline", [*common, *_of("offline", arguments.options)], None)
            for arm, rule in ARMS.items():
                checkpoint = start
                for phase in PHASES[arguments.method]:
                    if checkpoint is not None:
                        options = [*common, rule, *_of(phase, arguments.options)]
                        checkpoint = _finish(folder / arm, phase, options, checkpoint)
                if checkpoint is None:
                    failed.append(folder / arm)
    for folder in failed:
        print(f"failed: {folder}; its logs say why", file=sys.stderr)
    return 1 if failed else 0


def _of(phase: str, options: list[str]) -> list[str]:
    """The options that a phase is given: those of all, and its own."""
    others = {"offline", "reevaluate", "align", "online"} - {phase}
    return [f"--{option.removeprefix(f'{phase}.')}" for option in options if option.split(".")[0] not in others]


def _finish(run_dir: Path, phase: str, options: list[str], start: Path | None) -> Path | None:
    """A phase's checkpoint, or None where it failed."""
    begin = ["--model.init_from", str(start)] if start else []
    done = finish(run_dir, phase, [*options, *begin])
    return run_dir / phase / "checkpoints" / "last.ckpt" if done else None


def _table(out: Path) -> int:
    from rich.console import Console
    from rich.table import Table

    columns = ("dataset", "seed", "rule", "re-evaluation", "alignment", "share of steps", "π_off", "π_on",
               "lowest online", "mean", "final", "seconds before online")  # fmt: skip
    table = Table(title="Full step counts and `stop=converged` (scores; returns where there is no reference)")
    for name in columns:
        table.add_column(name, justify="left" if name in ("dataset", "rule") else "right")
    rows = []
    for folder in sorted(out.glob("*/seed*")):
        full = _facts(folder / "full")
        for arm in ARMS:
            found = _facts(folder / arm)
            if not found:
                continue
            share = found["steps"] / full["steps"] if full else None
            rows.append({"dataset": folder.parent.name, "seed": folder.name[4:], "rule": arm, "share": share, **found})
            scores = [found[name] for name in ("offline", "aligned", "lowest", "mean", "final")]
            table.add_row(
                folder.parent.name, folder.name[4:], arm, f"{found['reevaluate']:,}", f"{found['align']:,}",
                "–" if share is None else f"{share:.0%}", *("–" if x is None else f"{x:.1f}" for x in scores),
                f"{found['seconds']:,.0f}",
            )  # fmt: skip
    Console(width=150).print(table)
    (out / "converged.json").write_text(json.dumps(rows, indent=2) + "\n")
    return 0


def _facts(run: Path) -> dict[str, Any]:
    """What one arm of one seed came to; empty while it is not finished."""
    if not (run / "online" / "summary.json").exists():
        return {}
    summaries = {
        phase: json.loads((run / phase / "summary.json").read_text())
        for phase in ("reevaluate", "align", "online")
        if (run / phase).exists()
    }
    score = summaries["online"]["score"]
    online = [ret if value is None else value for step, ret, value in score["curve"] if step > 0]
    before = [summary for phase, summary in summaries.items() if phase != "online"]
    return {
        **{phase: summaries[phase]["steps"] if phase in summaries else 0 for phase in ("reevaluate", "align")},
        "steps": sum(summary["steps"] for summary in before),
        "seconds": sum(summary["seconds"] for summary in before),
        "stopped": {summary["phase"]: summary["stopped"] for summary in before},
        "offline": score.get("offline"),
        "aligned": score.get("aligned"),
        "lowest": min(online),
        "mean": mean(online),
        "final": score["final"],
    }


if __name__ == "__main__":
    sys.exit(main())
