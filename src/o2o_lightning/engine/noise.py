"""A phase's own random numbers, drawn for many updates at once."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from o2o_lightning.errors import UserError
from o2o_lightning.methods.method import Draws, Normal, Uniform

BLOCK = 16
Form = Normal | Uniform


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
        return {name: self._next(form) for name, form in wanted.items()}

    def draw_many(self, wanted: Draws, count: int) -> dict[str, Tensor]:
        """The same of so many updates, ``[K, …]`` by name, in a few operations: each number is that of :meth:`draw`."""
        if count == 1:
            return {label: part.unsqueeze(0) for label, part in self.draw(wanted).items()}
        names = {label: _name(FORMS[type(form)][0], form.shape) for label, form in wanted.items()}
        begun = {name: (self._blocks.get(name), self._used.get(name, BLOCK)) for name in names.values()}
        blocks: dict[str, list[Tensor]] = {name: [] for name in begun}
        for _ in range(count):  # a new block comes when the one before is used up, as one update after the other asks
            for label, form in wanted.items():
                name = names[label]
                if self._used.get(name, BLOCK) == BLOCK:
                    self._begin(name, form)
                    blocks[name].append(self._blocks[name])
                self._used[name] += 1
        found: dict[str, Tensor] = {}
        for name, (block, used) in begun.items():
            labels = [label for label, own in names.items() if own == name]
            parts = [*([] if block is None or used == BLOCK else [block[used:]]), *blocks[name]]
            numbers = (parts[0] if len(parts) == 1 else torch.cat(parts))[: count * len(labels)]
            found |= zip(labels, numbers.view(count, len(labels), *numbers.shape[1:]).unbind(1), strict=True)
        return {label: found[label] for label in wanted}

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

    def _next(self, form: Form) -> Tensor:
        name = _name(FORMS[type(form)][0], form.shape)
        if self._used.get(name, BLOCK) == BLOCK:
            self._begin(name, form)
        self._used[name] += 1
        return self._blocks[name][self._used[name] - 1]

    def _begin(self, name: str, form: Form) -> None:
        """The next block."""
        draw, generator = FORMS[type(form)][1], self.generator
        self._blocks[name] = draw(BLOCK, *form.shape, generator=generator, device=generator.device)
        self._used[name] = 0


@cache
def _name(kind: str, shape: tuple[int, ...]) -> str:
    return f"{kind} {'×'.join(map(str, shape))}"


def _symmetric(*shape: int, **options: Any) -> Tensor:
    return torch.rand(*shape, **options) * 2.0 - 1.0


FORMS: dict[type, tuple[str, Callable[..., Tensor]]] = {
    Normal: ("normal", torch.randn),
    Uniform: ("uniform", _symmetric),
}
