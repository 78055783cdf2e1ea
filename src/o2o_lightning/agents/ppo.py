"""The networks of PPO."""

from __future__ import annotations

from o2o_lightning.agents.base import Agent
from o2o_lightning.nn.gaussian import GaussianActor
from o2o_lightning.nn.reward_scale import RewardScale
from o2o_lightning.nn.values import ValueNet

LOG_STD_BOUNDS = (-10.0, 2.0)


class PPOAgent(Agent):
    """A Gaussian policy, a state-value network, and the running scale of rewards."""

    actor: GaussianActor
    offline_actor: GaussianActor

    def __init__(self, actor: GaussianActor, value: ValueNet, discount: float) -> None:
        actor.log_std_bounds = LOG_STD_BOUNDS
        super().__init__(actor)
        self.value = value
        self.reward_scale = RewardScale(discount)
