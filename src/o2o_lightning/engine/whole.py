"""Whole updates as functions of tensors alone, which may be recorded once and replayed.

One update is a gather, losses, gradients, Adam, targets and metrics. Taken whole it reads nothing back: learning rates,
schedules and row numbers are tensors, whether a loss was finite is one as well, and what changes the order of the steps
is known before they run. So a GPU gets one launch for many updates, where it would wait for hundreds.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from o2o_lightning.engine.engine import Engine
from o2o_lightning.methods.method import Batch, Follow, Method, Moment, Noise
from o2o_lightning.nn.optimizers import laid_out_as, step_together

Row = dict[str, Tensor]  # the means of an update's metrics
Learner = tuple[Method, torch.optim.Optimizer]
Rates = dict[str, float | list[float]]
Order = tuple[str, ...]


class WholeUpdates:
    """Updates of a method and its optimizer, all state written in place.

    Args:
        engine: evaluates the steps; one of stacked seeds makes the updates of all seeds.
        learners: by its place, the method of each seed that learns and its optimizer, in groups by ``name``; the
            networks are the engine's, or views of those of stacked seeds.

    Attributes:
        bad: of the shape of a loss, 1 from the first one on that was not finite; no step is made any more.
        made: how many updates there have been before it.
    """

    def __init__(self, engine: Engine, learners: Mapping[int, Learner]) -> None:
        self.engine, self.learners = engine, learners
        self.own = {place: parameters_of(optimizer) for place, (_, optimizer) in learners.items()}
        first = next(iter(learners))
        self.guide = learners[first][0]
        names = {parameter: name for name, parameter in self.guide.named_parameters()}
        self.parameters = [engine.method.get_parameter(names[parameter]) for parameter in self.own[first]]
        self.limits = self.guide.gradient_limits()
        self.bad = torch.zeros(engine.shape, device=self.device)
        self.made = torch.zeros(engine.shape, dtype=torch.int64, device=self.device)

    @property
    def device(self) -> torch.device:
        return self.parameters[0].device

    def rates(self, moments: Sequence[Moment]) -> list[Rates]:
        """The learning rates of all groups, and the values of buffers that follow a schedule; of each seed, if stacked.

        Rates are the optimizer's, or those of the method's schedules.
        """
        usual = {
            place: {group["name"]: group["lr"] for group in optimizer.param_groups}
            for place, (_, optimizer) in self.learners.items()
        }
        kind = type(self.guide)
        if kind.rates is Method.rates and kind.schedules is Method.schedules:
            return [self._of_each(usual)] * len(moments)
        return [
            self._of_each({
                place: {**usual[place], **method.rates(moment), **method.schedules(moment)}
                for place, (method, _) in self.learners.items()
            })
            for moment in moments
        ]  # fmt: skip

    def _of_each(self, rates: Mapping[int, Mapping[str, float]]) -> Rates:
        first = next(iter(rates.values()))
        if not self.engine.shape:
            return {**first}
        return {name: [rates.get(place, first)[name] for place in range(*self.engine.shape)] for name in first}

    def set_rates(self, rates: Mapping[str, Any]) -> None:
        """Gives each optimizer its own of them."""
        for place, (_, optimizer) in self.learners.items():
            for group in optimizer.param_groups:
                rate = rates[group["name"]]
                each = self.engine.parts(rate) if isinstance(rate, Tensor) else rate
                group["lr"] = each[place] if isinstance(each, Sequence) else each

    def __call__(
        self,
        moments: Sequence[Moment],
        batches: Iterable[Batch],
        noises: Sequence[Noise],
        rates: Sequence[dict[str, Tensor]],
        measured: bool = True,
    ) -> list[Row]:
        """One update after the other, each on its own batch, noise and ``rates``: 0-d tensors by name.

        Those of :meth:`rates`. Returns the means of each update's metrics, if they are to be ``measured``.
        """
        rows = []
        for moment, batch, noise, rate in zip(moments, batches, noises, rates, strict=True):
            metrics = self._update(moment, batch, noise, dict(rate))
            rows.append({name: self.engine.mean(value) for name, value in metrics.items()} if measured else {})
        return rows

    def _update(self, moment: Moment, batch: Batch, noise: Noise, rates: dict[str, Tensor]) -> dict[str, Tensor]:
        self.set_rates(rates)
        for name in self.guide.schedules(moment):
            self.engine.method.get_buffer(name).copy_(rates[name])
        metrics: dict[str, Tensor] = {}
        for loss in self.engine.losses(moment, batch, noise):
            self.bad.logical_or_(loss.value.detach() * 0.0 != 0.0)  # in a third of the kernels of isfinite
            # seeds do not meet: the sum's gradient is each one's own
            self._descend(loss.value.sum() if loss.value.dim() else loss.value)
            metrics |= {name: value.detach().float() for name, value in loss.metrics.items()}
        self.made.add_(self.bad == 0.0)
        return metrics

    def _descend(self, loss: Tensor) -> None:
        found = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        # autograd promises no memory layout, and the fused kernel pairs gradients and parameters by memory
        gradients = [
            None if gradient is None else self.engine.parts(laid_out_as(parameter, gradient))
            for parameter, gradient in zip(self.parameters, found, strict=True)
        ]
        bad = self.engine.parts(self.bad)
        for place, (_, optimizer) in self.learners.items():
            for parameter, parts in zip(self.own[place], gradients, strict=True):
                parameter.grad = None if parts is None else parts[place]
            for group in optimizer.param_groups:
                if group["name"] in self.limits and group["params"][0].grad is not None:
                    clip([p.grad for p in group["params"]], self.limits[group["name"]])
        optimizers = [optimizer for _, optimizer in self.learners.values()]
        step_together(optimizers, [bad[place] for place in self.learners])


def parameters_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """All that it moves, in its order."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def clip(gradients: list[Tensor], limit: float) -> None:
    """Scales the gradients of a network, in place, to a norm of at most ``limit``."""
    total = torch.nn.utils.get_total_norm(gradients)
    torch._foreach_mul_(gradients, (limit / (total + 1e-6)).clamp(max=1.0))


def order_of(method: Method, moment: Moment) -> Order:
    """The names of an update's steps, and the rates of what follows, which decide what a recording of it holds.

    A rate that is a tensor is read when the recording is replayed, as the networks are.
    """
    return tuple([
        item.__name__ if not isinstance(item, Follow) else "follow" if isinstance(item.rate, Tensor)
        else f"follow {item.rate}"
        for item in method.update(moment)
    ])  # fmt: skip


@contextmanager
def kept_as_it_is(updates: WholeUpdates) -> Iterator[None]:
    """Puts networks, buffers and the optimizer's moments back to what they were, in the same memory.

    Random numbers that steps draw themselves are drawn again, and no gradient or rate stays.
    """
    method, device = updates.engine.method, updates.device
    optimizers = [optimizer for _, optimizer in updates.learners.values()]
    tensors = [*method.parameters(), *method.buffers(), updates.bad, updates.made]
    before = [value.detach().clone() for value in tensors]
    moments = {p: {k: v.clone() for k, v in s.items()} for optimizer in optimizers for p, s in optimizer.state.items()}
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    with torch.random.fork_rng([] if device.type == "cpu" else [device]):
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(tensors, before)
                for parameter, state in chain.from_iterable(optimizer.state.items() for optimizer in optimizers):
                    kept = moments.get(parameter, {})
                    for name, value in state.items():  # what has been made since began as zeros
                        value.copy_(kept[name]) if name in kept else value.zero_()
            for optimizer, before_it in zip(optimizers, rates, strict=True):
                for group, rate in zip(optimizer.param_groups, before_it, strict=True):
                    group["lr"] = rate
                optimizer.found_inf = None  # type: ignore[attr-defined]
                optimizer.zero_grad(set_to_none=True)
