"""The networks of TD3."""

from __future__ import annotations

from o2o_lightning.agents.base import ActorCritic
from o2o_lightning.nn.actor import Actor
from o2o_lightning.nn.critics import Critics
from o2o_lightning.nn.targets import Polyak, frozen_copy


class TD3Agent(ActorCritic):
    """A deterministic actor with a target of its own, which never receives a gradient, and twin critics."""

    def __init__(self, actor: Actor, critic: Critics) -> None:
        super().__init__(actor, critic)
        self.target_actor = frozen_copy(actor)
        self._track_actor = Polyak(self.target_actor, actor)

    def track_actor(self, polyak: float) -> None:
        """Moves the target actor towards the actor."""
        self._track_actor(polyak)
