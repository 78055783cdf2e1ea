"""Updates on a device, made in four ways: single steps, compiled ones, captured whole, and captured for many seeds.

Part of ``benchmarks/speed.py``, as ``--device cuda``. Batches are gathered from a table on the device, inside what is
captured. Beside each time stand launches an update, the share of it in which the device was busy, and the floor: the
longer of operations at the rate of a large product, and bytes of networks and moments at that of a copy.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import cases
import measure
import torch
from rich.table import Table as RichTable
from torch import Tensor, nn

from o2o_lightning.engine.captured import Captured, Piece, parts_of
from o2o_lightning.engine.compiled import CompiledEngine
from o2o_lightning.engine.engine import Engine
from o2o_lightning.engine.noise import NoiseBlocks
from o2o_lightning.engine.record import CudaGraphs, tape
from o2o_lightning.engine.stacked import StackedEngine, joined
from o2o_lightning.engine.whole import WholeUpdates, order_of
from o2o_lightning.methods.cql import CQL
from o2o_lightning.methods.iql import IQL
from o2o_lightning.methods.method import Method, Moment
from o2o_lightning.methods.o2 import sac, td3
from o2o_lightning.methods.td3_bc import TD3BC
from o2o_lightning.nn.critics import lay_ensembles_side_by_side

WIDE, NARROW, K = cases.WIDE, cases.NARROW, cases.CHUNK
METHODS: dict[str, Callable[[], Method]] = {
    "SAC online": cases.online_sac,
    "SAC re-evaluation": lambda: cases.built(sac.Reevaluate(hidden=WIDE, layer_norm=True), cases.STOCHASTIC),
    "SAC alignment": lambda: cases.built(sac.Align(), cases.STOCHASTIC),
    "TD3 online": cases.online_td3,
    "TD3 re-evaluation": lambda: cases.built(td3.Reevaluate(hidden=NARROW, layer_norm=True), cases.DETERMINISTIC),
    "TD3 alignment": lambda: cases.built(td3.Align(), cases.DETERMINISTIC),
    "CQL": lambda: cases.built(CQL(hidden=WIDE, critic_hidden=WIDE, temperature=0.2)),
    "IQL": lambda: cases.built(IQL(hidden=NARROW)),
    "TD3+BC": lambda: cases.built(TD3BC(hidden=NARROW)),
}


class Subject:
    """K updates of a method, or of S stacked seeds of it, made in one way or another."""

    def __init__(self, make: Callable[[], Method], device: torch.device, way: str, seeds: int = 1) -> None:
        self.lead: tuple[int, ...] = (seeds,) if way == "stacked" else ()
        methods = [make().to(device) for _ in range(seeds)]
        self.method = method = methods[0]
        self.data = cases.offline_data()
        self.data.trainer.lightning_module.device = device
        self.data.precompute(method.cache)
        assert self.data.keep_near(device)
        learners = {place: (one, _optimizer(one)) for place, one in enumerate(methods)}
        self.optimizer = learners[0][1]
        self.noise, self.updates = NoiseBlocks(0, device), 0
        engine: Engine = Engine(method)
        if device.type != "cpu" and way not in ("compiled", "stacked"):
            lay_ensembles_side_by_side(method)
        if self.lead:
            engine = StackedEngine(joined(dict(enumerate(methods)), seeds), seeds)
        self.engine = CompiledEngine(method) if way == "compiled" else engine
        record = CudaGraphs() if device.type == "cuda" else tape
        whole = WholeUpdates(engine, learners)
        self.captured = Captured(whole, record) if way in ("captured", "stacked") else None

    def __call__(self) -> None:
        """Makes K updates."""
        moments = [Moment(self.updates + k, self.updates + k) for k in range(K)]
        numbers = self.data.store.sample_rows((K, *self.lead, cases.BATCH), self.data.rows)  # type: ignore[union-attr]
        wanted = self.method.noise((cases.BATCH, cases.A))
        each = [self.noise.draw_many(wanted, K) for _ in range(*self.lead or (1,))]
        self.updates += K
        if self.captured is not None:
            drawn = (numbers, each) if self.lead else (numbers, each[0])
            order = tuple(order_of(self.method, moment) for moment in moments)
            self.captured.replay(Piece(moments, order, *drawn, [False] * K), self._batches)
            return
        for moment, batch, noise in zip(moments, self.data.batches(numbers), parts_of(each[0], K), strict=True):
            for loss in self.engine.losses(moment, batch, noise):
                self.optimizer.zero_grad(set_to_none=True)
                loss.value.backward()
                self.optimizer.step()

    def _batches(self, numbers: Tensor) -> Any:
        return (dict(batch.items(True, True)) for batch in self.data.batches(numbers))


def _optimizer(method: Method) -> torch.optim.Optimizer:
    return method.optimizer([
        {"params": [part] if isinstance(part, nn.Parameter) else list(part.parameters()), "lr": rate, "name": name}
        for name, (part, rate) in method.learners().items()
    ])  # fmt: skip


def waited(device: torch.device) -> float:
    """The time, when the device has done all."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def timed(subject: Callable[[], Any], device: torch.device, rounds: int) -> float:
    """Microseconds an update: the median of ``rounds`` blocks of chunks."""
    for _ in range(3):
        subject()
    found = []
    for _ in range(rounds):
        start = waited(device)
        for _ in range(4):
            subject()
        found.append((waited(device) - start) / (4 * K) * 1e6)
    return statistics.median(found)


def launches(subject: Callable[[], Any], device: torch.device) -> dict[str, float]:
    """Launches an update, and microseconds an update in which the device is busy; nothing of a CPU."""
    if device.type != "cuda":
        return {}
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds) as profile:
        subject()
        waited(device)
    events = profile.events()
    busy = sum(event.device_time for event in events if event.device_type == torch.profiler.DeviceType.CUDA)
    return {"launches": sum("Launch" in event.name for event in events) / K, "busy_us": busy / K}


def floor_us(subject: Subject, device: torch.device) -> float:
    """The longer of an update's products at a large one's rate, and its networks' and moments' bytes at a copy's."""
    size = 4096 if device.type == "cuda" else 512
    a, b = (torch.randn(size, size, device=device) for _ in range(2))
    product = timed(lambda: [torch.mm(a, b) for _ in range(K)], device, 5)
    copy = timed(lambda: [b.copy_(a) for _ in range(K)], device, 5)
    flops = measure.gemm_flops(subject, 1) / K
    learned = sum(p.numel() for group in subject.optimizer.param_groups for p in group["params"])
    # read: weight, gradient, two moments; written: all but the gradient, and the gradient before
    return max(flops / (2 * size**3 / product), 4 * 8 * learned / (2 * a.nbytes / copy))


def measured(name: str, device: torch.device, seeds: Sequence[int], rounds: int, compiled: bool) -> dict[str, Any]:
    """All ways of one step."""
    make = METHODS[name]
    ways = [("eager", "eager", 1), *([("compiled", "compiled", 1)] if compiled else []), ("captured", "captured", 1)]
    ways += [(f"{count} seeds", "stacked", count) for count in seeds if count > 1]
    found: dict[str, Any] = {}
    for label, way, count in ways:
        subject = Subject(make, device, way, count)
        if not found:
            found["floor_us"] = floor_us(subject, device)
        found[label] = {"us": timed(subject, device, rounds), **launches(subject, device)}
    return found


def table(steps: dict[str, Any]) -> RichTable:
    """A row a step and way."""
    shown = RichTable(title="µs an update of all seeds, gather included", padding=(0, 1))
    for column in ("step", "way", "µs", "× eager", "launches", "busy", "of the floor"):
        shown.add_column(column, justify="left" if column in ("step", "way") else "right", no_wrap=True)
    for name, found in steps.items():
        for way, values in found.items():
            if way == "floor_us":
                continue
            one = "seeds" not in way
            busy = f"{values['busy_us'] / values['us']:.0%}" if "busy_us" in values else ""
            count = f"{values['launches']:.1f}" if "launches" in values else ""
            times = f"{found['eager']['us'] / values['us']:.1f}" if one else ""
            share = f"{found['floor_us'] / values['us']:.0%}" if one else ""
            shown.add_row(name if way == "eager" else "", way, f"{values['us']:.0f}", times, count, busy, share)
    return shown
