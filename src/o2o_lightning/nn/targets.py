"""Target networks: hard copies and freezing."""

import copy
from typing import TypeVar

import torch
from torch import nn

Net = TypeVar("Net", bound=nn.Module)


def frozen_copy(net: Net) -> Net:
    """A copy of ``net`` that no optimizer and no gradient ever reaches."""
    return copy.deepcopy(net).requires_grad_(False)


@torch.no_grad()
def hard_update(target: nn.Module, source: nn.Module) -> None:
    """``target ← source``, in place."""
    torch._foreach_copy_(list(target.parameters()), list(source.parameters()))
