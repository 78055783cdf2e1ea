"""A layer's matrix products, by whichever of torch's two libraries is the quicker one."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from o2o_lightning.nn.at_once import layer_norm_of_all, linear_of_all


class Onednn(NamedTuple):
    """Which of a layer's large products are oneDNN's: its own, and the gradients by its input and by its weight."""

    forward: bool
    by_input: bool
    by_weight: bool


ONEDNN = Onednn(False, False, False)  # torch's own, which are MKL's, until a phase has measured
LEAST_WIDTH = 64
LEAST_SIZE = 1 << 22  # multiplications: a call costs more than it saves below, docs/speed.md


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``x Wᵀ + b`` as ``F.linear``: ``[…, I], [O, I], [O] → […, O]``; large ones by oneDNN where that is quicker."""
    if torch._C._functorch.is_batchedtensor(weight):  # each seed has its own
        if x.dim() == 2:
            return linear_of_all(x, weight, bias)
        return linear(x.reshape(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], -1)
    exporting = torch.compiler.is_exporting()  # to a program for any batch and any processor
    if exporting or x.numel() * weight.shape[0] < LEAST_SIZE or not _suits_onednn(x, weight):
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


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """``a bᵀ + bias`` by oneDNN, without a gradient: ``[B, I], [O, I], [O] → [B, O]``, of any strides."""
    if torch.compiler.is_compiling():  # torch's own operation is compiled for constant weights only
        return torch.ops.o2o_lightning.product(a, b, bias)  # type: ignore[no-any-return]
    return _onednn_product(a, b, bias)


def _onednn_product(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise.default(a, b, bias, "none", [], "")  # type: ignore[no-any-return]


LIBRARY = torch.library.Library("o2o_lightning", "DEF")  # type: ignore[no-untyped-call]
LIBRARY.define("product(Tensor a, Tensor b, Tensor? bias) -> Tensor")  # type: ignore[no-untyped-call]
LIBRARY.impl("product", _onednn_product, "CPU")  # type: ignore[no-untyped-call]


@torch.library.register_fake("o2o_lightning::product")  # type: ignore[untyped-decorator]
def _product_shape(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    return a.new_empty((a.shape[0], b.shape[0]))


def _suits_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        any(ONEDNN)
        # inside a function that is differentiated; a compiler cannot look, and takes such a function apart itself
        and (torch.compiler.is_compiling() or not torch._C._functorch.is_gradtrackingtensor(x))
        and min(weight.shape) >= LEAST_WIDTH
        and x.dtype is torch.float32
        and x.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
    )


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias) if ONEDNN.forward else F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        by_x = _times(gradient, weight, ONEDNN.by_input) if of_x else None
        by_bias = gradient.sum(0) if of_bias else None
        if not of_weight:
            return by_x, None, by_bias
        if weight.is_contiguous():
            return by_x, _times(gradient.t(), x, ONEDNN.by_weight), by_bias
        return by_x, _times(x.t(), gradient, ONEDNN.by_weight).t(), by_bias  # laid out in memory as the weight is


def _times(a: Tensor, b: Tensor, onednn: bool) -> Tensor:
    return product(a, b.t()) if onednn else a @ b
