"""Value networks: ensembles of Q(s, a), and V(s)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from typing_extensions import Self

from o2o_lightning.nn.at_once import lay_side_by_side
from o2o_lightning.nn.mlp import MLP, Network, Spec, orthogonal_, outputs_of_all

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

    The members run one after the other, since on a CPU two plain ``F.linear`` chains beat one batched product; or, once
    they lie side by side in memory, all at once.
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
        self._at_once = False
        orthogonal_(self)

    def forward(self, observation: Tensor, action: Tensor, frozen: bool = False) -> Tensor:
        """``[B, S], [B, A] → [count, B]``; ``frozen`` treats the weights as constants."""
        outputs = self._outputs(observation, action, frozen)
        return outputs.squeeze(-1) if self.support is None else expected_value(outputs, self.support)

    def raised(self, by: float) -> Self:
        """Itself, every Q_i higher by so much; not of an ensemble with a ``support``."""
        assert self.support is None, "its values lie between the support's ends"
        for member in self.members:
            cast(MLP, member).raise_output(by)
        return self

    def logits(self, observation: Tensor, action: Tensor, frozen: bool = False) -> Tensor:
        """``[count, B, bins]``, of an ensemble with a ``support``."""
        return self._outputs(observation, action, frozen)

    def first(self, observation: Tensor, action: Tensor, frozen: bool = False) -> Tensor:
        """Q_1 alone, ``[B]``: what TD3's actor climbs."""
        if self.support is not None:
            return self(observation, action, frozen)[0]  # type: ignore[no-any-return]
        return self.members[0](torch.cat((observation, action), -1), frozen).squeeze(-1)  # type: ignore[no-any-return]

    def lay_side_by_side(self) -> None:
        """Moves the members' parameters into one memory, from where one product forms a layer of all: for a GPU."""
        lay_side_by_side([*self.members])
        self._at_once = True

    def _outputs(self, observation: Tensor, action: Tensor, frozen: bool) -> Tensor:
        x = torch.cat((observation, action), -1)
        members = cast(Sequence[MLP], self.members)
        return outputs_of_all(members, x, frozen) if self._at_once else torch.stack([m(x, frozen) for m in members])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._at_once = False  # the parameters move to another device or precision
        return super()._apply(fn, recurse)  # type: ignore[no-any-return,no-untyped-call]


def lay_ensembles_side_by_side(module: nn.Module) -> None:
    """Every ensemble's members in it, in one memory."""
    for part in module.modules():
        if isinstance(part, Critics):
            part.lay_side_by_side()


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
