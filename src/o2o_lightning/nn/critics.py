"""Value networks: ensembles of Q(s, a), and V(s)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from typing_extensions import Self

from o2o_lightning.nn.mlp import MLP, Network, Spec, orthogonal_

Support = tuple[float, float, int]  # the lowest value, the highest, and how many bins from one to the other


@dataclass(frozen=True)
class CriticSpec(Spec):
    """Of an ensemble."""

    observation_dim: int
    action_dim: int
    hidden: tuple[int, ...]
    layer_norm: bool
    count: int = 2
    support: Support | None = None


class Critics(Network):
    """``count`` independent networks Q_i(s, a), orthogonal initialisation (D26).

    With ``support``, a lowest value, a highest one and a number of bins, each is a distribution, and Q_i its mean.

    The members run one after the other: on a CPU two plain ``F.linear`` chains beat one batched product.
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        hidden: Sequence[int],
        layer_norm: bool,
        count: int = 2,
        support: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.support = None if support is None else (float(support[0]), float(support[1]), int(support[2]))
        self.spec = CriticSpec(observation_dim, action_dim, tuple(hidden), layer_norm, count, self.support)
        outputs = 1 if self.support is None else self.support[2]
        self.members = nn.ModuleList(
            MLP(observation_dim + action_dim, hidden, outputs, layer_norm=layer_norm) for _ in range(count)
        )
        orthogonal_(self)

    def forward(self, observation: Tensor, action: Tensor, frozen: bool = False) -> Tensor:
        """``[B, S], [B, A] → [count, B]``; ``frozen`` treats the weights as constants."""
        if self.support is not None:
            return expected_value(self.logits(observation, action, frozen), self.support)
        x = torch.cat((observation, action), -1)
        return torch.stack([member(x, frozen).squeeze(-1) for member in self.members])

    def raised(self, by: float) -> Self:
        """Itself, every Q_i higher by so much; not of an ensemble with a ``support``."""
        assert self.support is None, "its values lie between the support's ends"
        for member in self.members:
            cast(MLP, member).raise_output(by)
        return self

    def logits(self, observation: Tensor, action: Tensor, frozen: bool = False) -> Tensor:
        """``[count, B, bins]``, of an ensemble with a ``support``."""
        x = torch.cat((observation, action), -1)
        return torch.stack([member(x, frozen) for member in self.members])

    def first(self, observation: Tensor, action: Tensor, frozen: bool = False) -> Tensor:
        """Q_1 alone, ``[B]``: what TD3's actor climbs."""
        if self.support is not None:
            return self(observation, action, frozen)[0]  # type: ignore[no-any-return]
        return self.members[0](torch.cat((observation, action), -1), frozen).squeeze(-1)  # type: ignore[no-any-return]


def expected_value(logits: Tensor, support: Support) -> Tensor:
    """The mean of a distribution over equal bins, ``[…, bins] → […]``."""
    centres = torch.linspace(*support, dtype=logits.dtype, device=logits.device)
    return (logits.softmax(-1) * centres).sum(-1)


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
