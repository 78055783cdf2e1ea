"""State-value networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from o2o_lightning.nn.mlp import MLP, orthogonal_
from o2o_lightning.nn.network import Network


@dataclass(frozen=True)
class ValueSpec:
    """What is needed to rebuild a state-value network before its weights are loaded; primitives only."""

    observation_dim: int
    hidden: tuple[int, ...]
    activation: str

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "hidden": list(self.hidden)}

    @staticmethod
    def from_dict(state: dict[str, Any]) -> ValueSpec:
        return ValueSpec(**{**state, "hidden": tuple(state["hidden"])})


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


def build_value(spec: ValueSpec) -> ValueNet:
    """A fresh network of the sizes that ``spec`` names."""
    return ValueNet(spec.observation_dim, spec.hidden, spec.activation)
