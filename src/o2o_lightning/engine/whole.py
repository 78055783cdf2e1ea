"""Whole updates as one function of tensors, which may be recorded once and replayed.

One update is losses, gradients, Adam, targets and metrics. Taken whole it reads nothing back: learning rates,
thresholds and counters are tensors, whether a loss was finite is one as well, and what changes the order of the steps
is known before they run. So a GPU gets one launch for many updates, where it would wait for hundreds.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from o2o_lightning.engine.engine import Engine
from o2o_lightning.methods.method import Follow, Method, Moment
from o2o_lightning.nn.optimizers import laid_out_as

WARM_UPS = 3  # what an optimizer makes at its first steps, moments and lists of them, no replay must make again
Outputs = tuple[dict[str, Tensor], Tensor]
Function = Callable[..., list[Tensor]]
Record = Callable[[Function, list[Tensor], list[Tensor]], Function]


class WholeUpdates:
    """K updates of a method and its optimizer, all state written in place.

    Args:
        engine: evaluates the steps; one of stacked seeds makes the updates of all seeds.
        optimizer: of the method's learners, in groups by ``name``.
    """

    def __init__(self, engine: Engine, optimizer: torch.optim.Optimizer) -> None:
        self.engine, self.optimizer = engine, optimizer
        self.limits = engine.method.gradient_limits()
        self.parameters: list[nn.Parameter] = [p for group in optimizer.param_groups for p in group["params"]]

    def __call__(self, moments: Sequence[Moment], batches: Any, noises: Any, rates: dict[str, Tensor]) -> Outputs:
        """One update after the other, each on its own batch, noise and rates: tensors ``[K, …]`` by name.

        Among the rates are the values of buffers that follow a schedule.

        Returns the mean of each metric ``[K]``, NaN in the updates that have none, and ``[K]`` bool: which updates had
        finite losses only. After the first that had not, no step is made any more.
        """
        rows: list[dict[str, Tensor]] = []
        verdicts: list[Tensor] = []
        bad = torch.zeros((), device=self.parameters[0].device)
        for k, moment in enumerate(moments):
            batch, noise, rate = ({name: part[k] for name, part in parts.items()} for parts in (batches, noises, rates))
            for group in self.optimizer.param_groups:
                group["lr"] = rate.pop(group["name"])
            for name, value in rate.items():
                self.engine.method.get_buffer(name).copy_(value)
            metrics: dict[str, Tensor] = {}
            for loss in self.engine.losses(moment, batch, noise):
                bad = torch.maximum(bad, (~torch.isfinite(loss.value.detach())).any().float())
                self._descend(loss.value.sum(), bad)  # seeds do not meet: the sum's gradient is each one's own
                metrics |= {name: value.detach().float() for name, value in loss.metrics.items()}
            rows.append({name: self.engine.mean(value) for name, value in metrics.items()})
            verdicts.append(bad == 0.0)
        names = dict.fromkeys(name for row in rows for name in row)
        absent = torch.full_like(self.engine.mean(bad.expand(self.engine.shape)), torch.nan)
        return {name: torch.stack([row.get(name, absent) for row in rows]) for name in names}, torch.stack(verdicts)

    def _descend(self, loss: Tensor, bad: Tensor) -> None:
        gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            # autograd promises no memory layout, and the fused kernel pairs gradients and parameters by memory
            parameter.grad = None if gradient is None else laid_out_as(parameter, gradient)
        for group in self.optimizer.param_groups:
            if group["name"] in self.limits and group["params"][0].grad is not None:
                self.engine.clip([p.grad for p in group["params"]], self.limits[group["name"]])
        self.optimizer.found_inf = bad  # type: ignore[attr-defined]
        self.optimizer.step()


class Captured:
    """Whole updates that are recorded when an order of steps first comes, and replayed from then on.

    Args:
        updates: what is recorded.
        record: makes a graph of a function of tensors that works on networks beside them: :func:`cuda_graph`, or
            :func:`static_graph` on a CPU.
    """

    def __init__(self, updates: WholeUpdates, record: Record) -> None:
        self.updates, self.record = updates, record
        self._graphs: dict[tuple[tuple[str, ...], ...], tuple[Function, list[str]]] = {}

    @property
    def graphs(self) -> int:
        """How many orders of steps have come so far."""
        return len(self._graphs)

    def __call__(self, moments: Sequence[Moment], batches: Any, noises: Any) -> Outputs:
        """As :class:`WholeUpdates`, the learning rates by the method's schedules."""
        method = self.updates.engine.method
        inputs = (batches, noises, self._rates(method, moments))
        leaves, form = pytree.tree_flatten(inputs)
        order = tuple(order_of(method, moment) for moment in moments)
        if order not in self._graphs:
            names: list[str] = []

            def run(*leaves: Tensor) -> list[Tensor]:
                metrics, verdicts = self.updates(moments, *pytree.tree_unflatten(list(leaves), form))
                names[:] = metrics
                return [*metrics.values(), verdicts]

            with kept_as_it_is(method, self.updates.optimizer):  # recording runs what it records
                self._graphs[order] = self.record(run, leaves, [*method.parameters(), *method.buffers()]), names
        graph, names = self._graphs[order]
        *values, verdicts = graph(*leaves)
        return dict(zip(names, values, strict=True)), verdicts

    def _rates(self, method: Method, moments: Sequence[Moment]) -> dict[str, Tensor]:
        learners, device = method.learners(), self.updates.parameters[0].device
        usual = {name: rate for name, (_, rate) in learners.items()}
        scheduled = [usual | method.rates(moment) | method.schedules(moment) for moment in moments]
        # the kernel of a CPU computes with a rate in float64, that of a GPU reads a float32
        precision = torch.float64 if device.type == "cpu" else torch.float32
        columns = {name: [row[name] for row in scheduled] for name in scheduled[0]}
        return {name: torch.tensor(column, dtype=precision, device=device) for name, column in columns.items()}


def order_of(method: Method, moment: Moment) -> tuple[str, ...]:
    """The names of an update's steps, and the rates of what follows, which decide what a recording of it holds.

    A rate that is a tensor is read when the recording is replayed, as the networks are.
    """
    return tuple(
        item.__name__ if not isinstance(item, Follow) else "follow" if isinstance(item.rate, Tensor)
        else f"follow {item.rate}"
        for item in method.update(moment)
    )  # fmt: skip


def static_graph(function: Function, inputs: list[Tensor], state: list[Tensor]) -> Function:
    """``function`` as one list of operations on a CPU; whatever would look at a number of a tensor is refused."""
    for _ in range(WARM_UPS):
        function(*inputs)
    # as inputs: what is made of a closed-over tensor alone would be a constant of the graph
    graph = make_fx(lambda state, *leaves: function(*leaves))(state, *inputs)
    return torch.no_grad()(lambda *leaves: graph(state, *leaves))


def cuda_graph(function: Function, inputs: list[Tensor], state: list[Tensor]) -> Function:
    """``function`` as a CUDA graph over memory of its own, which a replay fills with its inputs first."""
    static = [leaf.clone() for leaf in inputs]
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            function(*static)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = function(*static)

    def replay(*leaves: Tensor) -> list[Tensor]:
        torch._foreach_copy_(static, list(leaves))
        graph.replay()
        return outputs

    return replay


class kept_as_it_is:
    """Puts networks, buffers and the optimizer's moments back to what they were, in the same memory."""

    def __init__(self, method: Method, optimizer: torch.optim.Optimizer) -> None:
        self.method, self.optimizer = method, optimizer

    def __enter__(self) -> None:
        self.before = [value.detach().clone() for value in self._tensors()]
        self.moments = {p: {k: v.clone() for k, v in state.items()} for p, state in self.optimizer.state.items()}

    @torch.no_grad()
    def __exit__(self, *error: object) -> None:
        for value, before in zip(self._tensors(), self.before, strict=True):
            value.copy_(before)
        for parameter, state in self.optimizer.state.items():
            kept = self.moments.get(parameter, {})
            for name, value in state.items():  # what the recording has made began as zeros
                value.copy_(kept[name]) if name in kept else value.zero_()

    def _tensors(self) -> list[Tensor]:
        return [*self.method.parameters(), *self.method.buffers()]
