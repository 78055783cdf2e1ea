"""Transitions as rows of one table, so that a batch is one gather and its normalisation two operations."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from o2o_lightning.nn.normalizer import Normalizer

OBSERVATIONS = ("observation", ("next", "observation"))
FLAGS = (("next", "terminated"), ("next", "truncated"))


class Layout:
    """What is where in a row: observation, action, reward, successor, and two flags that are 0 or 1; float32."""

    def __init__(self, observation_dim: int, action_dim: int) -> None:
        self.widths: dict[Any, int | None] = {  # None for a scalar
            "observation": observation_dim,
            "action": action_dim,
            "reward": None,
            ("next", "observation"): observation_dim,
            **dict.fromkeys(FLAGS),
        }
        self.parts = [width or 1 for width in self.widths.values()]
        self.width = sum(self.parts)
        self._constants: tuple[Normalizer, Tensor, Tensor] | None = None

    def columns(self, table: Tensor) -> dict[Any, Tensor]:
        """Views of a table ``[…, W]`` by name, ``[…, S]``, ``[…, A]`` and ``[…]``."""
        parts = torch.split(table, self.parts, -1)
        named = zip(self.widths.items(), parts, strict=True)
        return {key: part.squeeze(-1) if width is None else part for (key, width), part in named}

    def table(self, columns: TensorDictBase | dict[Any, Tensor]) -> Tensor:
        """The inverse of :meth:`columns`, a copy: of these alone, whatever else is among them."""
        parts = ((columns[key], width) for key, width in self.widths.items())
        return torch.cat([part.unsqueeze(-1) if width is None else part for part, width in parts], -1)

    def normalize_(self, table: Tensor, normalizer: Normalizer) -> Tensor:
        """``table`` ``[…, W]`` with its observations normalised in place, to the bits of ``normalizer`` itself."""
        if self._constants is None or self._constants[0] is not normalizer or self._constants[1].device != table.device:
            zero, one = torch.zeros(self.width), torch.ones(self.width)
            for row, constant in ((zero, normalizer.mean), (one, normalizer.std + normalizer.eps)):
                for key in OBSERVATIONS:
                    self.columns(row)[key].copy_(constant)
            self._constants = normalizer, zero.to(table.device), one.to(table.device)
        _, mean, scale = self._constants
        table.sub_(mean).div_(scale)
        if normalizer.clip is not None:
            for key in OBSERVATIONS:
                self.columns(table)[key].clamp_(-normalizer.clip, normalizer.clip)
        return table
