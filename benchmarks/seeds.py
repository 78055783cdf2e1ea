"""What several seeds in one process save: `o2o fit seeds=S` beside S runs of one seed, in turn.

    python benchmarks/seeds.py --seeds 4 --hidden 64 --updates 4000 --rounds 3

Each run is a process of one thread, forked from one that has imported everything. What is compared is the processor
time that more updates take: a run's less that of the same run with a quarter of the updates, so that neither building
networks nor recording updates counts.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from o2o_lightning.cli.main import main as o2o
from o2o_lightning.phases import align, offline, online, reevaluate  # noqa: F401  (imported before the forks)

RUNS = {
    "TD3+BC, offline": ["--phase", "offline", "offline=td3_bc"],
    "IQL, offline": ["--phase", "offline", "offline=iql"],
    "TD3, online": ["--phase", "online", "online=td3", "experiment=scratch"],
    "SAC, online": ["--phase", "online", "online=sac", "experiment=scratch"],
}


def processor_seconds(argv: Sequence[str], log: Path) -> float:
    """Of a run."""
    process = os.fork()
    if process == 0:
        with log.open("w") as out, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            code = o2o([*argv])
        os._exit(code)
    _, status, used = os.wait4(process, 0)
    if status:
        sys.exit(f"{' '.join(argv)}: {log.read_text()}")
    return used.ru_utime + used.ru_stime


def main() -> int:
    """Prints a row for each kind of run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--updates", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="runs whose name contains this")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name, run in RUNS.items():
        if arguments.only.lower() in name.lower():
            found = [_ratio(arguments, run) for _ in range(arguments.rounds)]
            low, middle, high = min(found), statistics.median(found), max(found)
            print(f"{name}: {arguments.seeds} seeds at once have {middle:.2f} times the throughput "
                  f"({low:.2f} to {high:.2f} in {len(found)} rounds)", flush=True)  # fmt: skip
    return 0


def _ratio(arguments: argparse.Namespace, run: Sequence[str]) -> float:
    """The throughput of all seeds at once, over that of one after the other."""
    used = {}
    for seeds in (1, arguments.seeds):
        for updates in (arguments.updates // 4, arguments.updates):
            with tempfile.TemporaryDirectory() as folder:
                counts = (
                    [f"--data.env_steps={updates}", "--data.env_id=Hopper-v5", "--data.warmup_steps=300"]
                    if "online" in run
                    else [f"--trainer.max_steps={updates}", "--data.dataset=embedded:hopper-medium"]
                )
                argv = [
                    "fit", *run, *counts, f"--model.hidden=[{arguments.hidden},{arguments.hidden}]",
                    f"--data.batch_size={arguments.batch}", "--data.eval_episodes=1", "--data.eval_every=1000000",
                    "--data.eval_every_updates=0", "--run_dir", f"{folder}/run",
                ]  # fmt: skip
                more = [f"seeds={seeds}"] if seeds > 1 else []
                used[seeds, updates] = processor_seconds([*argv, *more], Path(folder) / "log")
    small, large = arguments.updates // 4, arguments.updates
    alone, together = used[1, large] - used[1, small], used[arguments.seeds, large] - used[arguments.seeds, small]
    return arguments.seeds * alone / together


if __name__ == "__main__":
    sys.exit(main())
