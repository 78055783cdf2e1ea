"""What a policy is. Every actor maps normalised observations ``[B, S]`` to actions in ``[-1, 1]^A``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class ActorSpec:
    """What is needed to rebuild an actor before its weights are loaded; primitives only."""

    kind: str
    observation_dim: int
    action_dim: int
    hidden: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "hidden": list(self.hidden)}

    @staticmethod
    def from_dict(state: dict[str, Any]) -> ActorSpec:
        return ActorSpec(**{**state, "hidden": tuple(state["hidden"])})


class Actor(nn.Module):
    """Base of all policies; ``kind`` names the family in checkpoints and chooses what must be cloned."""

    kind: ClassVar[str]

    def __init__(self, observation_dim: int, action_dim: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.spec = ActorSpec(self.kind, observation_dim, action_dim, tuple(hidden))

    def mode(self, observation: Tensor) -> Tensor:
        """The deterministic action ``[B, A]``: what is evaluated, and the anchor of the alignment."""
        raise NotImplementedError(type(self).__name__)

    def act(self, observation: FloatArray) -> FloatArray:
        """:meth:`mode` on numpy observations ``[S]`` or ``[B, S]``, for stepping environments."""
        with torch.no_grad():
            device = next(self.parameters()).device
            action: FloatArray = self.mode(torch.from_numpy(observation).to(device)).float().cpu().numpy()
        return action
