"""The multilayer perceptron that every actor and critic is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "tanh": torch.tanh,
    "elu": F.elu,
    "gelu": F.gelu,
    "leaky_relu": F.leaky_relu,
    "silu": F.silu,
}
Layer = tuple[NDArray[np.float32], NDArray[np.float32]]


class _Views:
    """Arrays over the parameters' memory; the copy of a network, in this process or another, makes its own."""

    def __init__(self) -> None:
        self.at: list[int] = []
        self.layers: list[Layer] = []

    def __reduce__(self) -> tuple[type[_Views], tuple[()]]:
        return _Views, ()


class MLP(nn.Module):
    """``in_dim → hidden… → out_dim`` with ReLU (or another), and LayerNorm *before* the activation if asked (D11).

    Written over ``F.linear`` so that one set of weights serves three uses: a differentiable pass, a pass whose
    weights are constants (``frozen``, no weight gradient is computed), and a numpy pass for acting.
    """

    def __init__(
        self,
        in_dim: int,
        hidden: Sequence[int],
        out_dim: int,
        *,
        layer_norm: bool = False,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        widths = [in_dim, *hidden, out_dim]
        self.linears = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(widths))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in hidden) if layer_norm else None
        self.activation = activation
        self._views = _Views()

    def forward(self, x: Tensor, frozen: bool = False) -> Tensor:
        """``[…, in_dim] → […, out_dim]``."""
        act = ACTIVATIONS[self.activation]
        last = len(self.linears) - 1
        for i, linear in enumerate(self._linears()):
            weight, bias = (linear.weight.detach(), linear.bias.detach()) if frozen else (linear.weight, linear.bias)
            if i == last:
                return output_layer(x, weight, bias)
            x = F.linear(x, weight, bias)
            if self.norms is not None:
                norm = cast(nn.LayerNorm, self.norms[i])
                scale, shift = (norm.weight.detach(), norm.bias.detach()) if frozen else (norm.weight, norm.bias)
                x = F.layer_norm(x, list(norm.normalized_shape), scale, shift, norm.eps)
            x = act(x)
        return x

    def numpy(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """The same pass on the CPU without a graph; five times faster than torch on one observation."""
        if self.norms is not None or self.activation not in ("relu", "tanh"):
            with torch.no_grad():
                return np.asarray(self(torch.from_numpy(x)).numpy(), np.float32)
        layers = self._arrays()
        for weight, bias in layers[:-1]:
            x = x @ weight + bias
            x = np.tanh(x, out=x) if self.activation == "tanh" else np.maximum(x, 0.0, out=x)
        weight, bias = layers[-1]
        return x @ weight + bias

    def _arrays(self) -> list[Layer]:
        """Transposed weights and biases: on the CPU views, made again only when the parameters' memory is another."""
        linears = self._linears()
        at = [linear.weight.data_ptr() for linear in linears]
        if self._views.at != at:
            pairs = [[p.detach().cpu().numpy() for p in (linear.weight, linear.bias)] for linear in linears]
            self._views.layers = [(weight.T, bias) for weight, bias in pairs]
            on_cpu = linears[0].weight.device.type == "cpu"
            self._views.at = at if on_cpu else []  # elsewhere they are copies, and soon old
        return self._views.layers

    def _linears(self) -> list[nn.Linear]:
        return cast(list[nn.Linear], list(self.linears))


def output_layer(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A network's last layer, in the weights' own precision under autocast too.

    With it every value, log-probability, divergence and loss keeps it: eight bits of a Q-value of 300 are steps of two.
    """
    if not torch.is_autocast_enabled(x.device.type):
        return F.linear(x, weight, bias)
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x.to(weight.dtype), weight, bias)


def orthogonal_(module: nn.Module, gain: float = 1.0) -> None:
    """Orthogonal weights and zero biases on every linear layer, as the official code (D26)."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.orthogonal_(part.weight, gain)
            nn.init.zeros_(part.bias)


def uniform_(module: nn.Module) -> None:
    """The framework's own initialisation of every linear layer, uniform in ±1/√fan_in, as CORL's AWAC."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            part.reset_parameters()
