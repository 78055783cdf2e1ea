"""A method without a Trainer: random networks, random batches, one update driven by hand in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from o2o_lightning.engine.engine import Engine
from o2o_lightning.engine.noise import NoiseBlocks
from o2o_lightning.methods.method import Loss, Moment, Noise, Task

S, A, HIDDEN = 5, 3, (16, 12)
TASK = Task(S, A)
SECOND = Moment(1)  # the update in which every network moves
Rows = dict[str, Tensor]
Gradients = dict[str, Tensor]


@dataclass
class Checkpoint:
    """What a method may start from: new networks at every call."""

    actor: Callable[[], Any]
    critic: Callable[[], Any] | None = None
    phase: str = "align"

    def has(self, name: str) -> bool:
        return False

    def build_actor(self, name: str = "actor") -> Any:
        return self.actor()

    def build_critic(self, name: str = "critic") -> Any:
        assert self.critic is not None
        return self.critic()

    def build_value(self) -> None:
        return None

    def load(self, net: Any, name: str) -> Any:
        return net

    def load_scalar(self, parameter: nn.Parameter, name: str) -> None:
        """None is stored."""


def ready(method: Any, seed: int = 0, source: Checkpoint | None = None, spread: float = 0.2) -> Any:
    """``method`` with random networks, of which no two are equal, not even targets, in float64."""
    torch.manual_seed(seed)
    method.build(TASK, source)
    with torch.no_grad():
        for network in method.children():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter) * spread)
    return method.double()


def draw(seed: int, size: int) -> Rows:
    torch.manual_seed(seed + 100)
    rows = {"s": torch.randn(size, S), "a": torch.rand(size, A) * 2 - 1, "r": torch.randn(size)}
    rows |= {"s2": torch.randn(size, S), "d": (torch.rand(size) < 0.3).float()}
    return {key: value.double() for key, value in rows.items()}


def transitions(batch: Rows, **cache: Tensor) -> TensorDict:
    size = [len(batch["r"])]
    successor = TensorDict({"observation": batch["s2"], "terminated": batch["d"]}, size)
    return TensorDict(
        {"observation": batch["s"], "action": batch["a"], "reward": batch["r"], "next": successor, **cache}, size
    )


def cached(method: Any, batch: Rows) -> TensorDict:
    with torch.no_grad():
        return transitions(batch, **method.cache(transitions(batch)))


def noise_of(method: Any, shape: Sequence[int], seed: int = 0) -> Noise:
    """What an update would be given whose actions are of ``shape``."""
    drawn = NoiseBlocks(seed, torch.device("cpu")).draw(method.noise(tuple(shape)))
    return {name: value.double() for name, value in drawn.items()}


def gradients_of(module: nn.Module) -> Gradients:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def descend(method: Any, loss: Loss) -> Gradients:
    """All gradients that ``loss`` makes anywhere in the method."""
    method.zero_grad(set_to_none=True)
    loss.value.backward()
    return gradients_of(method)


@torch.no_grad()
def step(method: Any, rate: float = 0.05) -> None:
    for parameter in method.parameters():
        if parameter.grad is not None:
            parameter -= rate * parameter.grad


def losses(
    method: Any, batch: TensorDict, noise: Noise, moment: Moment = SECOND, rate: float = 0.05
) -> Iterator[tuple[Loss, Gradients]]:
    """Drives one update as a phase does: each loss is descended before the next one is formed."""
    for loss in Engine(method).losses(moment, batch, noise):
        found = descend(method, loss)
        step(method, rate)
        yield loss, found
