"""Clocks and counters of the benchmark: alternating blocks, GEMM floor, peak memory."""

from __future__ import annotations

import contextlib
import math
import os
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from o2o_lightning.nn.onednn import product

Update = Callable[[], Any]
WARM_UP = 4


def interleaved(subjects: dict[str, Update], rounds: int, updates: int) -> dict[str, list[float]]:
    """Milliseconds of processor time an update, ``rounds`` blocks of ``updates`` for each subject in turn.

    Processor time of this process, and blocks of tens of milliseconds that alternate: another program on the machine
    then slows all subjects alike, and a ratio taken block by block hardly notices it.
    """
    for update in subjects.values():
        for _ in range(WARM_UP):
            update()
    times: dict[str, list[float]] = {name: [] for name in subjects}
    for _ in range(rounds):
        for name, update in subjects.items():
            start = time.process_time()
            for _ in range(updates):
                update()
            times[name].append((time.process_time() - start) / updates * 1e3)
    return times


def processor_seconds() -> float:
    """Of this process and those that it has waited for: a C++ compiler's, too."""
    return sum(os.times()[:4])


def summary(times: list[float]) -> dict[str, float]:
    """Median, minimum and noise (half the distance between the quartiles over the median)."""
    median = statistics.median(times)
    low, _, high = statistics.quantiles(times, n=4)
    return {"median_ms": median, "min_ms": min(times), "noise": (high - low) / 2 / median}


def ratio(slow: list[float], fast: list[float]) -> float:
    """Median of the ratios of neighbouring blocks."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def gemm_peak(size: int = 256, rounds: int = 60) -> float:
    """Largest single-precision rate of ``size``³ products in this run by MKL or oneDNN, in GFLOP/s."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    best = float("inf")
    for multiply in (torch.mm, product) if torch.backends.mkldnn.is_available() else (torch.mm,):
        for _ in range(rounds):
            start = time.process_time()
            for _ in range(10):
                multiply(a, b)
            best = min(best, (time.process_time() - start) / 10)
    return 2 * size**3 / best / 1e9


def gemm_flops(update: Update, updates: int) -> float:
    """Floating-point operations of the matrix products of an update."""
    by_onednn = {torch.ops.mkldnn._linear_pointwise: _onednn_flops} if torch.backends.mkldnn.is_available() else {}
    with FlopCounterMode(display=False, custom_mapping=by_onednn) as counter:
        for _ in range(updates):
            update()
    return counter.get_total_flops() / updates


def _onednn_flops(a: Sequence[int], b: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * math.prod(a) * b[0]


@contextlib.contextmanager
def peak_memory(found: dict[str, float]) -> Iterator[None]:
    """Puts the largest resident size within the block, in MB, into ``found["peak_mb"]``; Linux only."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not reset.exists():
        yield
        return
    reset.write_text("5")  # forgets the peak so far
    yield
    size = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
    assert size is not None
    found["peak_mb"] = int(size[1]) / 1024
