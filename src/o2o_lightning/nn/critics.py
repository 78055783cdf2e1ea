"""Value networks: ensembles of Q(s, a), and V(s)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from o2o_lightning.nn.mlp import MLP, Network, Spec, orthogonal_


@dataclass(frozen=True)
class CriticSpec(Spec):
    """Of an ensemble."""

    observation_dim: int
    action_dim: int
    hidden: tuple[int, ...]
    layer_norm: bool
    count: int = 2


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


@dataclass(frozen=True)
class ValueSpec(Spec):
    """Of a state-value network."""

    observation_dim: int
    hidden: tuple[int, ...]
    activation: str


class ValueNet(Network):
    """V(s): ReLU and orthogonal weights in IQL, tanh and the framework's own in PPO (D26)."""

    def __init__(self, observation_dim: int, hidden: Sequence[int], activation: str = "relu") -> None:
        super().__init__()
        self.spec = ValueSpec(observation_dim, tuple(hidden), activation)
        self.body = MLP(observation_dim, hidden, 1, activation=activation)
        if activation == "relu":
            orthogonal_(self.body)

    def forward(self, observation: Tensor) -> Tensor:
        """``[…, S] → […]``."""
        return self.body(observation).squeeze(-1)  # type: ignore[no-any-return]
