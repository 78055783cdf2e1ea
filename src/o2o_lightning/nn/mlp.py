"""What every network is, and the multilayer perceptron that every actor and critic is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from o2o_lightning.nn.at_once import as_one, layer_norm_of_all, linear_of_all
from o2o_lightning.nn.linear import layer_norm, linear

IN_CACHE = 1 << 17  # numbers

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "elu": F.elu,
    "gelu": F.gelu,
    "leaky_relu": F.leaky_relu,
    "silu": F.silu,
}
Layer = tuple[Tensor, Tensor, Tensor | None, Tensor | None]  # weight and bias, LayerNorm's scale and shift
Layers = tuple[list[Layer], tuple[Tensor, Tensor]]  # the hidden ones, and the last one's weight and bias
ArrayLayer = tuple[NDArray[np.float32], NDArray[np.float32]]


@dataclass(frozen=True)
class Spec:
    """What is needed to rebuild a network before its weights are loaded; primitives only."""

    def to_dict(self) -> dict[str, Any]:
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}


class Network(nn.Module):
    """A module whose call is its ``forward`` and nothing else.

    torch's own call asks for hooks of several kinds first. Between matrix products that have swept the processor's
    caches that takes as long as a small product, and an update of TD3 makes a dozen such calls.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "forward" in vars(cls):
            cls.__call__ = cls.forward  # type: ignore[method-assign]


class _Views:
    """What looks at the parameters' memory; the copy of a network, in this process or another, makes its own."""

    def __init__(self) -> None:
        self.first: dict[str, Any] = {"weight": None}  # the first layer's own table of parameters
        self.weight: Tensor | None = None  # what it held when the layers were listed
        self.layers: dict[bool, Layers] = {}  # by whether they are constants
        self.at: list[int] = []
        self.arrays: list[ArrayLayer] = []

    def __reduce__(self) -> tuple[type[_Views], tuple[()]]:
        return _Views, ()


class MLP(Network):
    """``in_dim → hidden… → out_dim`` with ReLU (or another), and LayerNorm *before* the activation if asked (D11).

    Written over functions so that one set of weights serves three uses: a differentiable pass, a pass whose
    weights are constants (``frozen``, no weight gradient is computed), and a numpy pass for acting.
    """

    def __init__(
        self, in_dim: int, hidden: Sequence[int], out_dim: int, *, layer_norm: bool = False, activation: str = "relu"
    ) -> None:
        super().__init__()
        widths = [in_dim, *hidden, out_dim]
        self.linears = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(widths))
        self.linears[0].weight = _by_columns(self._linears()[0].weight)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in hidden) if layer_norm else None
        self.activation = activation
        self.width = max(hidden, default=0)
        self._views = _Views()

    def forward(self, x: Tensor, frozen: bool = False) -> Tensor:
        """``[…, in_dim] → […, out_dim]``."""
        traced = torch.compiler.is_compiling()  # a traced program takes any batch
        hidden, (last_weight, last_bias) = self._listed(frozen) if traced else self._layers(frozen)
        act = ACTIVATIONS[self.activation]
        if act is torch.relu and not traced and self._is_in_cache(x):
            act = torch.relu_
        for weight, bias, scale, shift in hidden:
            x = linear(x, weight, bias)
            if scale is not None and shift is not None:
                x = layer_norm(x, scale, shift)
            x = act(x)
        return output_layer(x, last_weight, last_bias)

    @torch.no_grad()
    def raise_output(self, by: float) -> None:
        """Adds a number to whatever it gives from now on."""
        self._linears()[-1].bias.add_(by)

    def numpy(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """The same pass without a graph; with ReLU and tanh on the CPU, five times faster than torch on one row."""
        if self.norms is not None or self.activation not in ("relu", "tanh"):
            with torch.no_grad():
                device = self._linears()[0].weight.device
                return np.asarray(self(torch.from_numpy(x).to(device)).cpu().numpy(), np.float32)
        layers = self._arrays()
        for weight, bias in layers[:-1]:
            x = x @ weight + bias
            x = np.tanh(x, out=x) if self.activation == "tanh" else np.maximum(x, 0.0, out=x)
        weight, bias = layers[-1]
        return x @ weight + bias

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MLP:
        self._views = _Views()  # the parameters move to another device or precision
        return super()._apply(fn, recurse)  # type: ignore[no-any-return,no-untyped-call]

    def _is_in_cache(self, x: Tensor) -> bool:
        """Whether a hidden layer's output is: then ReLU in place saves 3 to 5 % of an update.

        Beyond the cache the pass in place is the slower one, by 6 % of an update of CQL.
        """
        return x.numel() // x.shape[-1] * self.width <= IN_CACHE

    def _layers(self, frozen: bool) -> Layers:
        """The parameters in order, listed once: looking them up takes as long as the smaller of the products."""
        views = self._views
        if views.first["weight"] is not views.weight or not views.layers:  # torch.export lends others for its trace
            views.first = self._linears()[0]._parameters
            views.weight, views.layers = views.first["weight"], {}
        if frozen not in views.layers:
            views.layers[frozen] = self._listed(frozen)
        return views.layers[frozen]

    def _listed(self, frozen: bool) -> Layers:
        def shown(parameter: Tensor) -> Tensor:
            return parameter.detach() if frozen else parameter

        layers: list[Layer] = []
        norms = [*(self.norms or ()), *[None] * len(self.linears)]
        for layer, norm in zip(self._linears(), norms, strict=False):
            scale, shift = (None, None) if norm is None else map(shown, norm.parameters())
            layers.append((shown(layer.weight), shown(layer.bias), scale, shift))
        *hidden, (weight, bias, _, _) = layers
        return hidden, (weight, bias)

    def _arrays(self) -> list[ArrayLayer]:
        """Transposed weights and biases: on the CPU views, made again only when the parameters' memory is another."""
        linears = self._linears()
        at = [linear.weight.data_ptr() for linear in linears]
        if self._views.at != at:
            own = [p.detach() for linear in linears for p in (linear.weight, linear.bias)]
            on_cpu = own[0].device.type == "cpu"
            arrays = [p.numpy() for p in (own if on_cpu else fetched(own))]
            self._views.arrays = [(weight.T, bias) for weight, bias in zip(arrays[::2], arrays[1::2], strict=True)]
            self._views.at = at if on_cpu else []  # elsewhere they are copies, and soon old
        return self._views.arrays

    def _linears(self) -> list[nn.Linear]:
        return cast(list[nn.Linear], list(self.linears))


def outputs_of_all(networks: Sequence[MLP], x: Tensor, frozen: bool = False) -> Tensor:
    """What networks of one shape make of the same ``x``, all of a layer at once: ``[…, in_dim] → [N, …, out_dim]``."""
    lists = [network._layers(frozen) for network in networks]
    act = ACTIVATIONS[networks[0].activation]
    y = x.reshape(-1, x.shape[-1]).expand(len(networks), -1, -1)
    for same in zip(*(hidden for hidden, _ in lists), strict=True):
        weights, biases, scales, shifts = zip(*same, strict=True)
        y = linear_of_all(y, as_one(weights), as_one(biases))
        y = act(y if scales[0] is None else layer_norm_of_all(y, as_one(scales), as_one(shifts)))
    weight, bias = (as_one(same) for same in zip(*(last for _, last in lists), strict=True))
    return linear_of_all(y, weight, bias).view(len(networks), *x.shape[:-1], -1)


def fetched(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies on the CPU, by one transfer: on a GPU each would have to be waited for."""
    away = torch.cat([tensor.reshape(-1) for tensor in tensors])
    flat = torch.empty(away.shape, dtype=away.dtype, pin_memory=away.is_cuda).copy_(away)
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def _by_columns(weight: Tensor) -> nn.Parameter:
    """The same matrix column by column in memory.

    So torch forms its gradient as xᵀg, which with a dozen inputs takes a half to a third of the time of gᵀx: 2 % of an
    update.
    """
    return nn.Parameter(weight.detach().t().contiguous().t())


def output_layer(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A network's last layer, in the weights' own precision under autocast too.

    With it every value, log-probability, divergence and loss keeps it: eight bits of a Q-value of 300 are steps of two.
    """
    if not torch.is_autocast_enabled(x.device.type):
        return linear(x, weight, bias)
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
