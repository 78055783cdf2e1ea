"""Many seeds at once: every parameter and buffer is ``[S, …]``, and the same steps run on all."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from o2o_lightning.engine.engine import Engine
from o2o_lightning.methods.method import Batch, Loss, Method, Noise, Step
from o2o_lightning.nn.at_once import laid_side_by_side
from o2o_lightning.nn.critics import lay_ensembles_side_by_side


def stacked(methods: Sequence[Method]) -> Method:
    """One method that holds the networks of all, which are of equal sizes: each parameter and buffer ``[S, …]``."""
    together = copy.deepcopy(methods[0])
    for lists in ("_parameters", "_buffers"):
        for name, module in together.named_modules():
            tables = [getattr(method.get_submodule(name), lists) for method in methods]
            for leaf, value in getattr(module, lists).items():
                if value is not None:
                    joined = laid_side_by_side([table[leaf] for table in tables])
                    learns = value.requires_grad
                    getattr(module, lists)[leaf] = nn.Parameter(joined, learns) if lists == "_parameters" else joined
    if any(tensor.device.type != "cpu" for tensor in together.parameters()):
        lay_ensembles_side_by_side(together)
    return together


def joined(methods: Mapping[int, Method], count: int) -> Method:
    """As :func:`stacked`; the networks of each are views of those of all from then on, at its place.

    An empty place gets another's numbers, as a start.
    """
    anyone = next(iter(methods.values()))
    together = stacked([methods.get(place, anyone) for place in range(count)])
    for place, method in methods.items():
        pairs = zip(tensors(method), tensors(together), strict=True)
        views = {id(own): joint.detach()[place] for own, joint in pairs}
        method._apply(lambda tensor, views=views: views.get(id(tensor), tensor))  # type: ignore[no-untyped-call]
    return together


def tensors(method: Method) -> list[Tensor]:
    """Parameters and buffers."""
    return [*method.parameters(), *method.buffers()]


class StackedEngine(Engine):
    """Evaluates the steps of stacked seeds, none of which meets another; batches and noise are ``[S, …]``."""

    def __init__(self, method: Method, seeds: int) -> None:
        super().__init__(method)
        self.shape = (seeds,)

    def evaluate(self, step: Step, batch: Batch, noise: Noise) -> Loss:
        state = {**dict(self.method.named_parameters()), **dict(self.method.named_buffers())}

        def one(state: dict[str, Tensor], batch: Batch, noise: Noise) -> Loss:
            # a module that has two names is lent its parameters once: torch would give it back those of the second time
            return functional_call(self.method, state, (step.__name__, batch, noise), tie_weights=False)  # type: ignore[no-any-return]

        return vmap(one, randomness="different")(state, batch, noise)

    def mean(self, metric: Tensor) -> Tensor:
        if metric.device.type != "cpu":
            return metric.reshape(*self.shape, -1).mean(1)
        return torch.stack([part.mean() for part in metric.unbind()])  # to the bit as each seed's own

    def parts(self, tensor: Tensor) -> Sequence[Tensor]:
        return tensor.unbind()

    def joined(self, noise: Any) -> Mapping[str, Tensor]:
        return {name: torch.stack([own[name] for own in noise], 1) for name in noise[0]}
