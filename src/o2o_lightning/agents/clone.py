"""The networks of the clone phase."""

from __future__ import annotations

from o2o_lightning.agents.base import Agent
from o2o_lightning.nn.actor import Actor
from o2o_lightning.nn.critics import Critics
from o2o_lightning.nn.values import ValueNet


class CloneAgent(Agent):
    """The student, and the teacher's critic and value network where it has them: direct fine-tuning goes on with them.

    None of them but the student's policy ever receives a gradient.
    """

    def __init__(
        self, actor: Actor, critic: Critics | None, target_critic: Critics | None, value: ValueNet | None
    ) -> None:
        super().__init__(actor)
        for name, net in (("critic", critic), ("target_critic", target_critic), ("value", value)):
            if net is not None:
                self.add_module(name, net.requires_grad_(False))
