"""The networks of IQL."""

from __future__ import annotations

from o2o_lightning.agents.base import ActorCritic
from o2o_lightning.nn.actor import Actor
from o2o_lightning.nn.critics import Critics
from o2o_lightning.nn.values import ValueNet


class IQLAgent(ActorCritic):
    """A policy, twin critics with targets, and a state-value network."""

    def __init__(self, actor: Actor, critic: Critics, value: ValueNet) -> None:
        super().__init__(actor, critic)
        self.value = value
