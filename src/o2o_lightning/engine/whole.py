"""Whole updates as functions of tensors alone, which may be recorded once and replayed.

One update is a gather, losses, gradients, Adam, targets and metrics. Taken whole it reads nothing back: learning rates,
schedules and row numbers are tensors, whether a loss was finite is one as well, and what changes the order of the steps
is known before they run. So a GPU gets one launch for many updates, where it would wait for hundreds.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from o2o_lightning.engine.engine import Engine
from o2o_lightning.methods.method import Batch, Follow, Method, Moment, Noise
from o2o_lightning.nn.optimizers import laid_out_as

Row = dict[str, Tensor]  # the means of an update's metrics


class WholeUpdates:
    """Updates of a method and its optimizer, all state written in place.

    Args:
        engine: evaluates the steps; one of stacked seeds makes the updates of all seeds.
        optimizer: of the method's learners, in groups by ``name``.

    Attributes:
        bad: 0-d, 1 from the first loss on that was not finite; no step is made any more.
        made: 0-d, how many updates there have been before it.
    """

    def __init__(self, engine: Engine, optimizer: torch.optim.Optimizer) -> None:
        self.engine, self.optimizer = engine, optimizer
        self.limits = engine.method.gradient_limits()
        self.parameters: list[nn.Parameter] = [p for group in optimizer.param_groups for p in group["params"]]
        self.bad = torch.zeros((), device=self.device)
        self.made = torch.zeros((), dtype=torch.int64, device=self.device)

    @property
    def device(self) -> torch.device:
        return self.parameters[0].device

    def __call__(
        self,
        moments: Sequence[Moment],
        batches: Iterable[Batch],
        noises: Sequence[Noise],
        rates: Sequence[dict[str, Tensor]],
        measured: bool = True,
    ) -> list[Row]:
        """One update after the other, each on its own batch, noise and ``rates``: 0-d tensors by name.

        Those are the learning rates of all groups, and the values of buffers that follow a schedule. Returns the means
        of each update's metrics, if they are to be ``measured``.
        """
        rows = []
        for moment, batch, noise, rate in zip(moments, batches, noises, rates, strict=True):
            metrics = self._update(moment, batch, noise, dict(rate))
            rows.append({name: self.engine.mean(value) for name, value in metrics.items()} if measured else {})
        return rows

    def _update(self, moment: Moment, batch: Batch, noise: Noise, rates: dict[str, Tensor]) -> dict[str, Tensor]:
        for group in self.optimizer.param_groups:
            group["lr"] = rates.pop(group["name"])
        for name, value in rates.items():
            self.engine.method.get_buffer(name).copy_(value)
        metrics: dict[str, Tensor] = {}
        for loss in self.engine.losses(moment, batch, noise):
            # seeds do not meet: the sum's gradient is each one's own
            total = loss.value.sum() if loss.value.dim() else loss.value
            self.bad.logical_or_(total.detach() * 0.0 != 0.0)  # in a third of the kernels of isfinite
            self._descend(total)
            metrics |= {name: value.detach().float() for name, value in loss.metrics.items()}
        self.made.add_(self.bad == 0.0)
        return metrics

    def _descend(self, loss: Tensor) -> None:
        gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            # autograd promises no memory layout, and the fused kernel pairs gradients and parameters by memory
            parameter.grad = None if gradient is None else laid_out_as(parameter, gradient)
        for group in self.optimizer.param_groups:
            if group["name"] in self.limits and group["params"][0].grad is not None:
                self.engine.clip([p.grad for p in group["params"]], self.limits[group["name"]])
        self.optimizer.found_inf = self.bad  # type: ignore[attr-defined]
        self.optimizer.step()


def order_of(method: Method, moment: Moment) -> tuple[str, ...]:
    """The names of an update's steps, and the rates of what follows, which decide what a recording of it holds.

    A rate that is a tensor is read when the recording is replayed, as the networks are.
    """
    return tuple(
        item.__name__ if not isinstance(item, Follow) else "follow" if isinstance(item.rate, Tensor)
        else f"follow {item.rate}"
        for item in method.update(moment)
    )  # fmt: skip


@contextmanager
def kept_as_it_is(updates: WholeUpdates) -> Iterator[None]:
    """Puts networks, buffers and the optimizer's moments back to what they were, in the same memory.

    Random numbers that steps draw themselves are drawn again, and no gradient or rate stays.
    """
    method, optimizer, device = updates.engine.method, updates.optimizer, updates.device
    tensors = [*method.parameters(), *method.buffers(), updates.bad, updates.made]
    before = [value.detach().clone() for value in tensors]
    moments = {p: {k: v.clone() for k, v in state.items()} for p, state in optimizer.state.items()}
    rates = [group["lr"] for group in optimizer.param_groups]
    with torch.random.fork_rng([] if device.type == "cpu" else [device]):
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(tensors, before)
                for parameter, state in optimizer.state.items():
                    kept = moments.get(parameter, {})
                    for name, value in state.items():  # what has been made since began as zeros
                        value.copy_(kept[name]) if name in kept else value.zero_()
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
            optimizer.found_inf = None  # type: ignore[attr-defined]
            optimizer.zero_grad(set_to_none=True)
