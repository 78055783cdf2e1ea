"""The networks of SAC."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from o2o_lightning.agents.base import ActorCritic
from o2o_lightning.nn.critics import Critics
from o2o_lightning.nn.squashed_gaussian import SquashedGaussian, SquashedGaussianActor
from o2o_lightning.objectives.sac import soft_policy_loss


class PolicyStep(NamedTuple):
    """Actions ``[B, A]`` of the policy with their log-probabilities and values, and the policy's loss there."""

    action: Tensor
    log_prob: Tensor
    q: Tensor
    loss: Tensor


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

    def policy_step(self, observation: Tensor, policy: SquashedGaussian, noise: Tensor, alpha: Tensor) -> PolicyStep:
        """The policy's loss at fresh actions, Eq. 2, with the critics as constants."""
        action, log_prob = policy.sample(noise)
        q = self.critic(observation, action, frozen=True)
        return PolicyStep(action, log_prob, q, soft_policy_loss(q, log_prob, alpha))
