"""A phase's own random numbers, drawn for many updates at once."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from o2o_lightning.errors import UserError
from o2o_lightning.methods.method import Draws, Normal, Uniform

BLOCK = 16


class NoiseBlocks:
    """Normal and uniform noise for one update at a time, from blocks of sixteen.

    Blocks follow the requests and not the chunks: so the chunk changes no number.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self.generator = torch.Generator(device)
        self.generator.manual_seed(seed)
        self._blocks: dict[str, Tensor] = {}
        self._used: dict[str, int] = {}

    def draw(self, wanted: Draws) -> dict[str, Tensor]:
        """What a method's :meth:`~o2o_lightning.methods.method.Method.noise` asks for, in its order."""
        return {name: self._next(*FORMS[type(form)], form.shape) for name, form in wanted.items()}

    def state(self) -> dict[str, Any]:
        """Tensors and primitives; what is left of the blocks included."""
        blocks = {name: block.cpu() for name, block in self._blocks.items()}
        return {"generator": self.generator.get_state(), "blocks": blocks, "used": dict(self._used)}

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state`.

        Raises:
            UserError: the state is of another kind of device, whose generator draws other numbers.
        """
        if state["generator"].shape != self.generator.get_state().shape:
            raise UserError(
                f"this run began on another kind of device than {self.generator.device.type}, whose random numbers are "
                "others. Go on with it where it began, or start a new run from its policy with --model.init_from."
            )
        self.generator.set_state(state["generator"])
        self._blocks = {name: block.to(self.generator.device) for name, block in state["blocks"].items()}
        self._used = dict(state["used"])

    def _next(self, kind: str, draw: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
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


FORMS: dict[type, tuple[str, Callable[..., Tensor]]] = {
    Normal: ("normal", torch.randn),
    Uniform: ("uniform", _symmetric),
}
