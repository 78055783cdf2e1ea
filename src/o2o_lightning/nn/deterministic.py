"""TD3's policy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from o2o_lightning.nn.actor import Actor, FloatArray
from o2o_lightning.nn.mlp import MLP, orthogonal_


class DeterministicActor(Actor):
    """TD3's policy: ``S → hidden → A``, ReLU, tanh output."""

    kind = "deterministic"

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        hidden: Sequence[int] = (256, 256),
        activation: str = "relu",
        mean: str = "tanh",
    ) -> None:
        super().__init__(observation_dim, action_dim, hidden, activation, mean)
        self.body = MLP(observation_dim, hidden, action_dim, activation=activation)
        orthogonal_(self.body)

    def forward(self, observation: Tensor) -> Tensor:
        """``[B, S] → [B, A]``."""
        return torch.tanh(self.body(observation))

    def mode(self, observation: Tensor) -> Tensor:
        return self(observation)  # type: ignore[no-any-return]

    def act(self, observation: FloatArray) -> FloatArray:
        return np.tanh(self.body.numpy(observation))
