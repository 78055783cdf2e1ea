"""What a dataset's size costs: time to the first update, resident memory, and time an update, 10k to 10M transitions.

    python benchmarks/large_data.py --folder /path/with/3GB/left --out large_data.json

Generates files of Hopper's widths (10M rows: 1.1 GB, and as much again for the memory map), measures each in a process
of its own, twice: when the map is made, and when it is found. Everything generated is removed at the end. Times are
seconds of the clock and, in brackets, of this process's CPU, which other users of the machine change less.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

OBSERVATION, ACTION, EPISODE = 11, 3, 1000
BLOCK = 100_000


def main() -> int:
    """Generates, measures, prints a table; with ``--measure`` the part that runs in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", type=int, default=[10_000, 100_000, 1_000_000, 10_000_000])
    parser.add_argument("--updates", type=int, default=320, help="gradient updates a phase")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--out", type=Path, help="the numbers as JSON")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.updates)))
        return 0
    scratch = Path(tempfile.mkdtemp(prefix="o2o-large-", dir=arguments.folder))
    try:
        results = [_run(scratch, rows, arguments.updates) for rows in arguments.rows]
    finally:
        shutil.rmtree(scratch)
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=2) + "\n")
    _print(results)
    return 0


def generate(path: Path, rows: int) -> None:
    """A D4RL-style file of smooth noise in episodes of 1000, written in blocks."""
    import h5py
    import numpy as np

    random = np.random.default_rng(0)
    widths = {"observations": (OBSERVATION,), "actions": (ACTION,), "next_observations": (OBSERVATION,), "rewards": ()}
    with h5py.File(path, "w") as file:
        for key, width in widths.items():
            file.create_dataset(key, (rows, *width), "f4", chunks=(min(rows, BLOCK), *width))
        for key in ("terminals", "timeouts"):
            file.create_dataset(key, (rows,), "?")
        for start in range(0, rows, BLOCK):
            part = slice(start, min(start + BLOCK, rows))
            count = part.stop - part.start
            states = random.standard_normal((count + 1, OBSERVATION), np.float32)
            file["observations"][part], file["next_observations"][part] = states[:-1], states[1:]
            file["actions"][part] = random.uniform(-1, 1, (count, ACTION)).astype(np.float32)
            file["rewards"][part] = random.uniform(0, 1, count).astype(np.float32)
            file["timeouts"][part] = np.arange(part.start + 1, part.stop + 1) % EPISODE == 0
        file["metadata/env_id"] = "Hopper-v5"


def measure(path: Path, updates: int) -> dict[str, Any]:
    """Seconds and bytes of loading ``path`` and of the first updates of two phases, in this process."""
    import lightning as L
    import torch

    from o2o_lightning.cli.lightning import quiet
    from o2o_lightning.data.module import OfflineData
    from o2o_lightning.methods.o2 import td3
    from o2o_lightning.methods.td3_bc import TD3BC
    from o2o_lightning.phases.offline import Offline
    from o2o_lightning.phases.reevaluate import Reevaluate

    torch.set_num_threads(1)
    quiet()

    class Clock(L.Callback):
        def __init__(self) -> None:
            self.marks: list[Moment] = []

        def on_train_batch_end(self, *_: Any) -> None:
            self.marks.append(Moment())

    def fit(phase: L.LightningModule, name: str) -> str:
        clock, started = Clock(), Moment()
        trainer = L.Trainer(
            accelerator="cpu", max_epochs=1, max_steps=updates, logger=False, callbacks=[clock],
            enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        )  # fmt: skip
        trainer.fit(phase, datamodule=data)
        chunks = [after.since(before) for before, after in zip(clock.marks, clock.marks[1:], strict=False)]
        found[f"{name}_first_chunk_s"] = clock.marks[0].since(started)
        found[f"{name}_update_ms"] = _median(chunks, 1e3 / data.chunk)
        checkpoint = str(path.with_suffix(".ckpt"))
        trainer.save_checkpoint(checkpoint)
        return checkpoint

    L.seed_everything(0, verbose=False)
    data = OfflineData(str(path), env_id="Hopper-v5", memmap=True, eval_every_updates=0)
    found: dict[str, Any] = {"memory_before": _memory()}
    started = Moment()
    data.setup("fit")
    found["load_s"] = Moment().since(started)
    assert data.store is not None
    data.env_id = None  # nothing here is about evaluations
    found["rows"], found["memory_loaded"] = len(data.store), _memory()
    offline = fit(Offline(TD3BC()), "td3_bc")
    fit(Reevaluate(td3.Reevaluate(), offline), "reevaluate")
    found["memory_trained"] = _memory()
    times = []
    for _ in range(100):
        started = Moment()
        data.store.gather(data.store.sample_rows((16, 256), data.rows))
        times.append(Moment().since(started))
    found["gather_us"] = _median(times, 1e6 / 16)
    return found


class Moment:
    """Now, on the clock and in CPU time of this process."""

    def __init__(self) -> None:
        self.times = time.perf_counter(), time.process_time()

    def since(self, start: Moment) -> list[float]:
        """Seconds of both."""
        return [now - then for now, then in zip(self.times, start.times, strict=True)]


def _median(times: list[list[float]], unit: float) -> list[float]:
    return [statistics.median(column) * unit for column in zip(*times, strict=True)]


def _memory() -> dict[str, float]:
    """Resident MB: the process's own, and pages of mapped files, which the kernel takes back when it needs them."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return {name: int(fields[key].split()[0]) / 1024 for name, key in (("own", "RssAnon"), ("files", "RssFile"))}


def _run(scratch: Path, rows: int, updates: int) -> dict[str, Any]:
    path, cache = scratch / f"{rows}.hdf5", scratch / "cache"
    generate(path, rows)
    found: dict[str, Any] = {}
    for name in ("made", "found"):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "O2O_CACHE": str(cache)}
        command = [sys.executable, __file__, "--measure", str(path), "--updates", str(updates)]
        out = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        found[name] = json.loads(out.splitlines()[-1])
        print(f"{rows:,} rows, map {name}: {found[name]}", flush=True)
    path.unlink()
    shutil.rmtree(cache)
    return found


def _print(results: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Cost of a dataset's size (memory-mapped)")
    for column in ("rows", "load s: made", "found", "first chunk s: TD3+BC", "re-evaluation", "own MB: loaded",
                   "trained", "gather µs", "update ms: TD3+BC", "re-evaluation"):  # fmt: skip
        table.add_column(column, justify="right")
    for result in results:
        made, found = result["made"], result["found"]
        before = found["memory_before"]["own"]
        table.add_row(
            f"{found['rows']:,}", _both(made["load_s"]), _both(found["load_s"]),
            _both(found["td3_bc_first_chunk_s"]), _both(found["reevaluate_first_chunk_s"]),
            f"+{found['memory_loaded']['own'] - before:.0f}", f"+{found['memory_trained']['own'] - before:.0f}",
            _both(found["gather_us"]), _both(found["td3_bc_update_ms"]), _both(found["reevaluate_update_ms"]),
        )  # fmt: skip
    Console(width=150).print(table)


def _both(times: list[float]) -> str:
    return f"{times[0]:.1f} ({times[1]:.1f})"


if __name__ == "__main__":
    sys.exit(main())
