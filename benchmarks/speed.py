"""How fast the package is, beside the same work done plainly, and how far from what the processor allows.

    OMP_NUM_THREADS=1 python benchmarks/speed.py                    # all of it, some minutes
    OMP_NUM_THREADS=1 python benchmarks/speed.py --compile          # compiled steps too: minutes more at first
    OMP_NUM_THREADS=1 python benchmarks/speed.py --only "TD3" --rounds 5 --json speed.json
    python benchmarks/speed.py --device cuda --seeds 1,4,16,64      # updates on a GPU, docs/speed.md

Prints updates/s of each step eager and compiled, the ratio to the textbook's step, the share of the GEMM floor, peak
memory, Lightning's overhead, and what data and environment cost. docs/speed.md says how each number is made.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import captured
import cases
import measure
import surroundings
import torch
from rich.console import Console
from rich.table import Table

from o2o_lightning.phases.products import settle_library

BLOCK_SECONDS = 0.2


def main() -> int:
    """Runs what is asked for; prints tables, and writes JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="steps whose name contains this")
    parser.add_argument("--rounds", type=int, default=15, help="blocks of each subject, in turn")
    parser.add_argument("--compile", action="store_true", help="compiled steps too")
    parser.add_argument("--chunks", type=int, default=12, help="chunks of the Lightning runs; 0 for none")
    parser.add_argument("--json", type=Path, help="write everything to this file")
    parser.add_argument("--device", default="cpu", help="cuda: eager, compiled, captured and stacked updates there")
    parser.add_argument("--seeds", default="1,4,16,64", help="with --device: how many are stacked")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settle_library()
    console = Console()
    if arguments.device != "cpu":
        return on_a_device(arguments, console)
    peak = measure.gemm_peak()
    found: dict[str, Any] = {"machine": machine(), "gemm_gflops": peak, "steps": {}}
    console.print(f"one thread, fp32, batch {cases.BATCH}; sgemm peak {peak:.0f} GFLOP/s; times are processor time")
    chosen = [case for case in cases.CASES if arguments.only.lower() in case.name.lower()]
    for case in chosen:
        with console.status(case.name) if console.is_terminal else contextlib.nullcontext():
            found["steps"][case.name] = measure_step(case, arguments.rounds, arguments.compile, peak)
    console.print(step_table(found["steps"]))
    if arguments.chunks:
        fits = [name for name in surroundings.FITS if name in found["steps"]]
        overhead = {name: surroundings.lightning_overhead(name, arguments.chunks) for name in fits}
        found["lightning"] = overhead
        for name, values in overhead.items():
            console.print(
                f"{name}: Lightning, data, Rich bar and CSV rows cost {values['overhead']:.1%} of a bare update "
                f"(median chunk {values['overhead_median']:.1%}), of which data {values['data']:.1%}"
            )
    found["data_us"] = surroundings.data_costs(arguments.rounds)
    console.print(cost_table("a batch", found["data_us"]))
    found["environment"] = surroundings.environment_costs(arguments.rounds)
    for name, values in found["environment"].items():
        console.print(
            f"{name}: an online environment step takes {values['online_us']:.0f} µs, env.step and a bare numpy actor "
            f"{values['bare_us']:.0f} µs: {values['ratio']:.2f}×"
        )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1))
    return 0


def on_a_device(arguments: argparse.Namespace, console: Console) -> int:
    """``--device``: how updates run there."""
    device, seeds = torch.device(arguments.device), [int(count) for count in arguments.seeds.split(",")]
    steps = {
        name: captured.measured(name, device, seeds, arguments.rounds, arguments.compile)
        for name in captured.METHODS
        if arguments.only.lower() in name.lower()
    }
    console.print(captured.table(steps))
    if arguments.json is not None:
        card = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        arguments.json.write_text(json.dumps({"machine": {**machine(), "device": card}, "steps": steps}, indent=1))
    return 0


def measure_step(case: cases.Case, rounds: int, compiled: bool, peak: float) -> dict[str, Any]:
    """Everything about one step."""
    memory: dict[str, float] = {}
    with measure.peak_memory(memory):
        ours = case.ours(False)
        for _ in range(case.period * measure.WARM_UP):
            ours()
    flops = measure.gemm_flops(ours, case.period)
    floor = flops / peak / 1e6
    subjects = {"textbook": case.theirs(), "eager": ours}
    seconds = 0.0
    if compiled:
        start = measure.processor_seconds()
        subjects["compiled"] = case.ours(True)
        for _ in range(case.period):
            subjects["compiled"]()
        seconds = measure.processor_seconds() - start
    times = measure.interleaved(subjects, rounds, updates_a_block(ours, case.period))
    result: dict[str, Any] = {"gemm_mflop": flops / 1e6, "floor_ms": floor, "memory": memory, "compile_s": seconds}
    for name, taken in times.items():
        result[name] = measure.summary(taken)
        result[name]["updates_per_s"] = 1e3 / result[name]["median_ms"]
        result[name]["share_of_floor"] = floor / result[name]["median_ms"]
        result[name]["ratio"] = measure.ratio(times["textbook"], taken)
    if compiled:
        gain = result["eager"]["median_ms"] - result["compiled"]["median_ms"]
        result["pays_back_updates"] = seconds * 1e3 / gain if gain > 0 else None
    return result


def updates_a_block(update: measure.Update, period: int) -> int:
    """As many whole periods as fill a block."""
    start = time.process_time()
    for _ in range(2 * period):
        update()
    taken = (time.process_time() - start) / (2 * period)
    return max(1, round(BLOCK_SECONDS / taken / period)) * period


def step_table(steps: dict[str, Any]) -> Table:
    """One row a step."""
    table = Table(title="ms an update, data included", padding=(0, 0))
    table.add_column("step", no_wrap=True)
    for name in ("text-\nbook", "eager", "upd/s", "×", "of\nfloor", "com-\npiled", "×", "of\nfloor", "noise", "MB"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, found in steps.items():
        eager, compiled = found["eager"], found.get("compiled")
        noise = max(found[subject]["noise"] for subject in ("textbook", "eager"))
        table.add_row(
            name,
            f"{found['textbook']['median_ms']:.2f}",
            f"{eager['median_ms']:.2f}",
            f"{eager['updates_per_s']:.0f}",
            f"{eager['ratio']:.2f}",
            f"{eager['share_of_floor']:.0%}",
            *(
                (f"{compiled['median_ms']:.2f}", f"{compiled['ratio']:.2f}", f"{compiled['share_of_floor']:.0%}")
                if compiled
                else ("", "", "")
            ),
            f"±{noise:.0%}",
            f"{found['memory'].get('peak_mb', float('nan')):.0f}",
        )
    return table


def cost_table(what: str, rows: dict[str, dict[str, float]]) -> Table:
    """Microseconds, one row a way to do it."""
    table = Table("way", "median µs", "least µs", title=f"data: {what} of {cases.BATCH}")
    for name, found in rows.items():
        table.add_row(name, f"{found['median_us']:.0f}", f"{found['min_us']:.0f}")
    return table


def machine() -> dict[str, str]:
    """What the numbers depend on."""
    return {"processor": platform.processor() or platform.machine(), "python": platform.python_version(),
            "torch": torch.__version__, "cpu_capability": torch.backends.cpu.get_cpu_capability()}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
