"""Target networks: hard copies, Polyak averages, freezing."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

Net = TypeVar("Net", bound=nn.Module)


def frozen_copy(net: Net) -> Net:
    """A copy of ``net`` that no optimizer and no gradient ever reaches."""
    return copy.deepcopy(net).requires_grad_(False)


@torch.no_grad()
def hard_update(target: nn.Module, source: nn.Module) -> None:
    """``target ← source``, in place."""
    torch._foreach_copy_(list(target.parameters()), list(source.parameters()))


class Polyak:
    """Moves a target network towards its source; the parameters are listed once, as that takes longer than moving."""

    def __init__(self, target: nn.Module, source: nn.Module) -> None:
        self._target: list[Tensor] = list(target.parameters())
        self._source: list[Tensor] = list(source.parameters())

    @torch.no_grad()
    def __call__(self, rate: float) -> None:
        """``target ← (1 − rate)·target + rate·source``, in place and in one kernel call."""
        torch._foreach_lerp_(self._target, self._source, rate)
