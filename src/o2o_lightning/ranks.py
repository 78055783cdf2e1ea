"""The processes of one run, one a device: what they share, and which of them this one is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Ranks:
    """Process ``rank`` of ``count``. With one process every operation gives back what it was given, untouched."""

    rank: int = 0
    count: int = 1

    @classmethod
    def of(cls, trainer: Any) -> Ranks:
        """The processes of a Trainer; without one, this process alone."""
        return cls() if trainer is None else cls(trainer.global_rank, trainer.world_size)

    def steps(self, clock: int, count: int) -> bool:
        """Whether one of the ``count`` environment steps that follow ``clock`` is this process's.

        Step n belongs to process n modulo the number of processes, so that a budget, an evaluation or a period may fall
        on any step; ``count`` is at most the number of processes.
        """
        return (self.rank - clock) % self.count < count

    def mean(self, tensor: Tensor) -> Tensor:
        """Mean of ``tensor`` over the processes, without gradient."""
        if self.count == 1:
            return tensor
        total = tensor.detach().clone()
        dist.all_reduce(total)
        return total / self.count

    def mean_row(self, row: Mapping[str, float]) -> dict[str, float]:
        """Mean of each value over the processes; all have the same keys."""
        if self.count == 1 or not row:
            return dict(row)
        rows: list[dict[str, float]] = self.all(dict(row))
        return {name: sum(other[name] for other in rows) / self.count for name in row}

    def gather(self, tensor: Tensor) -> Tensor:
        """The processes' tensors ``[N, …]`` one below the other, ``[count·N, …]``, without gradient."""
        if self.count == 1:
            return tensor
        sent = tensor.detach().to(torch.uint8 if tensor.dtype is torch.bool else tensor.dtype).contiguous()
        parts = [torch.empty_like(sent) for _ in range(self.count)]
        dist.all_gather(parts, sent)
        return torch.cat(parts).to(tensor.dtype)

    def own(self, tensor: Tensor) -> Tensor:
        """This process's part of what :meth:`gather` returned."""
        return tensor.chunk(self.count)[self.rank]

    def all(self, value: Any) -> list[Any]:
        """The value of each process, in their order."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def average_gradients(self, parameters: Iterable[nn.Parameter], loss: Tensor) -> Tensor:
        """Each gradient becomes its mean over the processes, in one message; returns the mean loss.

        Lightning's own way, DDP's hooks in the backward pass, waits for every parameter at each backward pass, and a
        phase's losses reach one network each. The loss travels along: where one is not finite, all processes know.
        """
        loss = loss.detach()
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([*(gradient.reshape(-1) for gradient in gradients), loss.reshape(1).to(gradients[0].dtype)])
        dist.all_reduce(flat)
        *means, loss = torch.split(flat / self.count, [*(gradient.numel() for gradient in gradients), 1])
        torch._foreach_copy_(gradients, [m.view_as(g) for m, g in zip(means, gradients, strict=True)])
        return loss.squeeze(0)


def lost(error: BaseException) -> bool:
    """Whether ``error`` says that another process of the run is gone."""
    text = str(error)
    return isinstance(error, dist.DistError) or ("gloo" in text and "onnection" in text)
