"""What the agents of all off-policy algorithms share."""

from __future__ import annotations

from torch import nn

from o2o_lightning.nn.actor import Actor
from o2o_lightning.nn.critics import Critics
from o2o_lightning.nn.targets import frozen_copy, polyak_update


class ActorCritic(nn.Module):
    """Actor, critics, target critics, and the offline policy π_off that everything is anchored to.

    ``target_critic`` and ``offline_actor`` never receive a gradient.
    """

    def __init__(self, actor: Actor, critic: Critics) -> None:
        super().__init__()
        self.actor, self.critic = actor, critic
        self.target_critic = frozen_copy(critic)
        self.offline_actor = frozen_copy(actor)

    def track_critic(self, polyak: float) -> None:
        """Moves the target critics towards the critics."""
        polyak_update(self.target_critic, self.critic, polyak)
