"""What a GPU would have to wait for: operations of an update, and what the host does for one beside them.

    python benchmarks/host.py --seeds 1,4,16 --updates 16000

Operations are counted on this machine's CPU, of networks that lie and batches that come as on a GPU, views of memory
left out: each is a launch or more. The host's time is that of a fit whose replays take nothing: Lightning, numbers of
rows, noise, moments, hand-overs between seeds, rows of metrics. Noise is drawn by this CPU, which takes longer than to
launch a kernel.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import captured
import torch
from rich.console import Console
from rich.table import Table as RichTable
from torch.utils._python_dispatch import TorchDispatchMode

from o2o_lightning.cli.main import main as o2o
from o2o_lightning.engine.captured import Captured, Later
from o2o_lightning.engine.record import is_view
from o2o_lightning.engine.together import Together
from o2o_lightning.methods import cql
from o2o_lightning.nn.critics import lay_ensembles_side_by_side
from o2o_lightning.phases import replays
from o2o_lightning.phases.replays import Replays

K = captured.K
ALL = 10**9
MANY = Later(torch.tensor(ALL))


class Operations(TorchDispatchMode):
    """How many there are, but for views and for memory that is not filled."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.count += not (is_view(func) or name.startswith(("empty", "new_empty", "_unsafe_view", "detach")))
        return func(*args, **(kwargs or {}))


def operations(name: str, seeds: int) -> float:
    """An update's, of all seeds."""
    found = []

    def record(function: Callable[[], Any], device: torch.device) -> Any:
        function()
        with Operations() as counted:
            rows = function()
        found.append(counted.count / K)
        return lambda: rows

    cql.BLOCK_ROWS = ALL
    subject = captured.Subject(
        captured.METHODS[name], torch.device("cpu"), "stacked" if seeds > 1 else "captured", seeds
    )
    lay_ensembles_side_by_side(subject.engine.method)
    assert subject.captured is not None
    subject.captured.record = record
    subject()
    return found[0]


def host_us(seeds: int, updates: int) -> float:
    """Microseconds a joint update of TD3+BC, of three quarters of so many; replays do nothing."""
    stamps: list[tuple[float, int]] = []
    make, kept = Replays.make, (replays.tape, Captured.made, Together.made)

    def watched(self: Replays, draws: Any) -> None:
        if self.phase.lane is None or self.phase.lane.place == 0:
            stamps.append((time.perf_counter(), self.phase.updates))
        make(self, draws)

    def nothing(function: Callable[[], Any], device: torch.device) -> Any:
        rows = function()
        return lambda: rows

    replays.tape, Replays.make = nothing, watched  # type: ignore[method-assign]
    Captured.made, Together.made = lambda self: MANY, lambda self, place: MANY  # type: ignore[method-assign]
    try:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()) as said:
            code = o2o([
                "fit", "--phase", "offline", "offline=td3_bc", f"--trainer.max_steps={updates}", "--model.hidden=[8,8]",
                "--data.dataset=embedded:hopper-medium", "--data.eval_episodes=0", "--model.compile=record",
                "--run_dir", f"{folder}/run", *([f"seeds={seeds}"] if seeds > 1 else []),
            ])  # fmt: skip
    finally:
        replays.tape, Captured.made, Together.made = kept  # type: ignore[method-assign]
        Replays.make = make  # type: ignore[method-assign]
    if code:
        sys.exit(said.getvalue())
    (start, first), (end, last) = stamps[len(stamps) // 4], stamps[-2]
    return (end - start) / (last - first) * 1e6


def main() -> int:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="1,4,16")
    parser.add_argument("--updates", type=int, default=16_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    counts = [int(count) for count in arguments.seeds.split(",")]
    console, table = Console(width=110), RichTable(title="operations an update of all seeds")
    for column in ("step", *(f"{count} seed{'s' if count > 1 else ''}" for count in counts)):
        table.add_column(column)
    for name in captured.METHODS:
        table.add_row(name, *(f"{operations(name, count):.0f}" for count in counts))
    console.print(table)
    found: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(arguments.rounds):
        for count in counts:
            found[count].append(host_us(count, arguments.updates))
    for count, each in found.items():
        console.print(
            f"{count} seed{'s' if count > 1 else ''}: the host takes {min(each):.0f} to {max(each):.0f} µs an update"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
