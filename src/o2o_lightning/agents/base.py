"""What the agents of all algorithms share."""

from __future__ import annotations

from torch import nn

from o2o_lightning.nn.actor import Actor
from o2o_lightning.nn.critics import Critics
from o2o_lightning.nn.targets import Polyak, frozen_copy


class Agent(nn.Module):
    """A policy, and the offline policy π_off that everything is anchored to, which never receives a gradient."""

    def __init__(self, actor: Actor) -> None:
        super().__init__()
        self.actor = actor
        self.offline_actor = frozen_copy(actor)


class ActorCritic(Agent):
    """Actor, critics, and target critics, which never receive a gradient."""

    def __init__(self, actor: Actor, critic: Critics) -> None:
        super().__init__(actor)
        self.critic = critic
        self.target_critic = frozen_copy(critic)
        self._track_critic = Polyak(self.target_critic, critic)

    def track_critic(self, polyak: float) -> None:
        """Moves the target critics towards the critics."""
        self._track_critic(polyak)
