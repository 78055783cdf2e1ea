"""A layer's matrix products, by whichever of torch's two libraries is the quicker one; and its LayerNorm."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from o2o_lightning.nn import onednn
from o2o_lightning.nn.at_once import layer_norm_of_all, linear_of_all


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``x Wᵀ + b`` as ``F.linear``: ``[…, I], [O, I], [O] → […, O]``; large ones by oneDNN where that is quicker."""
    if torch._C._functorch.is_batchedtensor(weight):  # each seed has its own
        if x.dim() == 2:
            return linear_of_all(x, weight, bias)
        return linear(x.reshape(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], -1)
    exporting = torch.compiler.is_exporting()  # to a program for any batch and any processor
    if exporting or not onednn.suits(x.numel() * weight.shape[0], x, weight):
        return F.linear(x, weight, bias)
    if x.dim() > 2:  # oneDNN's result would be a view, which may not be changed in place
        return linear(x.flatten(0, -2), weight, bias).view(*x.shape[:-1], -1)
    return _Linear.apply(x, weight, bias)  # type: ignore[no-any-return,no-untyped-call]


def layer_norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """torch's, over the last dimension: ``[…, O], [O], [O] → […, O]``."""
    if not torch._C._functorch.is_batchedtensor(scale):
        return torch.layer_norm(x, scale.shape, scale, shift)
    if x.dim() == 2:
        return layer_norm_of_all(x, scale, shift)
    return layer_norm_of_all(x.reshape(-1, x.shape[-1]), scale, shift).view(x.shape)


class Linear(nn.Linear):
    """torch's layer over :func:`linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """``[…, I] → […, O]``."""
        return linear(x, self.weight, self.bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return onednn.product(x, weight, bias) if onednn.ONEDNN.forward else F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        by_x = _times(gradient, weight, onednn.ONEDNN.by_input) if of_x else None
        by_bias = gradient.sum(0) if of_bias else None
        if not of_weight:
            return by_x, None, by_bias
        if weight.is_contiguous():
            return by_x, _times(gradient.t(), x, onednn.ONEDNN.by_weight), by_bias
        return (
            by_x,
            _times(x.t(), gradient, onednn.ONEDNN.by_weight).t(),
            by_bias,
        )  # laid out in memory as the weight is


def _times(a: Tensor, b: Tensor, by_onednn: bool) -> Tensor:
    return onednn.product(a, b.t()) if by_onednn else a @ b
