"""The networks of TD3."""

from __future__ import annotations

from o2o_lightning.agents.base import ActorCritic
from o2o_lightning.nn.actor import Actor
from o2o_lightning.nn.critics import Critics
from o2o_lightning.nn.targets import frozen_copy, polyak_update


class TD3Agent(ActorCritic):
    """A deterministic actor with a target of its own, which never receives a gradient, and twin critics."""

    def __init__(self, actor: Actor, critic: Critics) -> None:
        super().__init__(actor, critic)
        self.target_actor = frozen_copy(actor)

    def track_actor(self, polyak: float) -> None:
        """Moves the target actor towards the actor."""
        polyak_update(self.target_actor, self.actor, polyak)
