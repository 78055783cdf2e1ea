"""oneDNN's products beside torch's own, which are MKL's: which of a layer's large ones are formed by it."""

from typing import NamedTuple

import torch
from torch import Tensor


class Onednn(NamedTuple):
    """Which of a layer's large products are oneDNN's: its own, and the gradients by its input and by its weight."""

    forward: bool
    by_input: bool
    by_weight: bool


ONEDNN = Onednn(False, False, False)  # torch's own, which are MKL's, until a phase has measured
LEAST_WIDTH = 64
LEAST_SIZE = 1 << 22  # multiplications: a call costs more than it saves below, docs/speed.md


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


def suits(size: int, x: Tensor, weight: Tensor) -> bool:
    """Whether products of so many multiplications each, of such tensors, may be its own."""
    return (
        any(ONEDNN)
        and size >= LEAST_SIZE
        # inside a function that is differentiated; a compiler cannot look, and takes such a function apart itself
        and (torch.compiler.is_compiling() or not torch._C._functorch.is_gradtrackingtensor(x))
        and min(weight.shape[-2:]) >= LEAST_WIDTH
        and x.dtype is torch.float32
        and x.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
    )
