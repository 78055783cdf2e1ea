"""The networks of SAC."""

from __future__ import annotations

import math

import torch
from torch import nn

from o2o_lightning.agents.base import ActorCritic
from o2o_lightning.nn.critics import Critics
from o2o_lightning.nn.squashed_gaussian import SquashedGaussianActor


class SACAgent(ActorCritic):
    """A squashed-Gaussian actor, one critic or two (AntMaze has one), and the temperature α = exp(``log_alpha``)."""

    actor: SquashedGaussianActor
    offline_actor: SquashedGaussianActor

    def __init__(self, actor: SquashedGaussianActor, critic: Critics, temperature: float) -> None:
        super().__init__(actor, critic)
        self.log_alpha = nn.Parameter(torch.tensor(math.log(temperature)))

    @property
    def target_entropy(self) -> float:
        """H̄ = −A, what the temperature steers the policy's entropy to."""
        return -float(self.actor.spec.action_dim)
