"""Target networks: hard copies, freezing, and whether two are the same."""

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


def differ(one: nn.Module, other: nn.Module) -> bool:
    """Whether any weight does."""
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() != theirs.keys() or not all(torch.equal(ours[name], theirs[name]) for name in ours)
