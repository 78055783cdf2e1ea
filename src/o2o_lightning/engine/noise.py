"""A phase's own random numbers, drawn for many updates at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

BLOCK = 16


class Noise:
    """Normal and uniform noise for one update at a time, from blocks of sixteen.

    Blocks follow the requests and not the chunks: so the chunk changes no number, and a delayed policy update draws
    none in vain.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self.generator = torch.Generator(device)
        self.generator.manual_seed(seed)
        self._blocks: dict[str, Tensor] = {}
        self._used: dict[str, int] = {}

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        """Standard normal noise."""
        return self._next("normal", shape, torch.randn)

    def uniform(self, shape: tuple[int, ...]) -> Tensor:
        """Uniform noise in [−1, 1)."""
        return self._next("uniform", shape, _symmetric)

    def state(self) -> dict[str, Any]:
        """Tensors and primitives; what is left of the blocks included."""
        blocks = {name: block.cpu() for name, block in self._blocks.items()}
        return {"generator": self.generator.get_state(), "blocks": blocks, "used": dict(self._used)}

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state`."""
        self.generator.set_state(state["generator"])
        self._blocks = {name: block.to(self.generator.device) for name, block in state["blocks"].items()}
        self._used = dict(state["used"])

    def _next(self, kind: str, shape: tuple[int, ...], draw: Callable[..., Tensor]) -> Tensor:
        name = _name(kind, shape)
        used = self._used.get(name, BLOCK)
        if used == BLOCK:
            device = self.generator.device
            self._blocks[name], used = draw(BLOCK, *shape, generator=self.generator, device=device), 0
        self._used[name] = used + 1
        return self._blocks[name][used]


@cache
def _name(kind: str, shape: tuple[int, ...]) -> str:
    return f"{kind} {'×'.join(map(str, shape))}"


def _symmetric(*shape: int, **options: Any) -> Tensor:
    return torch.rand(*shape, **options) * 2.0 - 1.0
