"""Action-value ensembles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from o2o_lightning.nn.mlp import MLP, orthogonal_
from o2o_lightning.nn.network import Network


@dataclass(frozen=True)
class CriticSpec:
    """What is needed to rebuild an ensemble before its weights are loaded; primitives only."""

    observation_dim: int
    action_dim: int
    hidden: tuple[int, ...]
    layer_norm: bool
    count: int = 2

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "hidden": list(self.hidden)}

    @staticmethod
    def from_dict(state: dict[str, Any]) -> CriticSpec:
        return CriticSpec(**{**state, "hidden": tuple(state["hidden"])})


class Critics(Network):
    """``count`` independent networks Q_i(s, a), orthogonal initialisation (D26).

    The members run one after the other: on a CPU two plain ``F.linear`` chains beat one batched product.
    """

    def __init__(
        self, observation_dim: int, action_dim: int, hidden: Sequence[int], layer_norm: bool, count: int = 2
    ) -> None:
        super().__init__()
        self.spec = CriticSpec(observation_dim, action_dim, tuple(hidden), layer_norm, count)
        self.members = nn.ModuleList(
            MLP(observation_dim + action_dim, hidden, 1, layer_norm=layer_norm) for _ in range(count)
        )
        orthogonal_(self)

    def forward(self, observation: Tensor, action: Tensor, frozen: bool = False) -> Tensor:
        """``[B, S], [B, A] → [count, B]``; ``frozen`` treats the weights as constants."""
        x = torch.cat((observation, action), -1)
        return torch.stack([member(x, frozen).squeeze(-1) for member in self.members])

    def first(self, observation: Tensor, action: Tensor, frozen: bool = False) -> Tensor:
        """Q_1 alone, ``[B]``: what TD3's actor climbs."""
        return self.members[0](torch.cat((observation, action), -1), frozen).squeeze(-1)  # type: ignore[no-any-return]


def build_critics(spec: CriticSpec) -> Critics:
    """A fresh ensemble of the sizes that ``spec`` names."""
    return Critics(spec.observation_dim, spec.action_dim, spec.hidden, spec.layer_norm, spec.count)
