"""Offline phase: implicit Q-learning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from o2o_lightning.agents.iql import IQLAgent
from o2o_lightning.checkpoint.handover import Handover
from o2o_lightning.nn.critics import Critics
from o2o_lightning.nn.deterministic import DeterministicActor
from o2o_lightning.nn.gaussian import GaussianActor
from o2o_lightning.nn.values import ValueNet
from o2o_lightning.objectives.bellman import least, td_target
from o2o_lightning.objectives.iql import advantage_weight, expectile_loss, iql_critic_loss, weighted_imitation_loss
from o2o_lightning.objectives.schedules import cosine_decay
from o2o_lightning.phases.base import Loss, Phase
from o2o_lightning.phases.steps import step_function


class IQL(Phase):
    """IQL: an expectile of Q over the data's actions, and a policy that imitates the better ones.

    Args:
        expectile: κ of the value loss; towards 1, V approaches the best action of the data.
        inverse_temperature: β of the imitation weights.
        weight_cap: largest imitation weight.
        actor_lr, critic_lr, value_lr: Adam's rates; the actor's falls to 0 along a cosine.
        anneal_updates: gradient updates of that cosine; the whole phase by default.
        discount: γ.
        polyak: rate of the target critics.
        deterministic: a deterministic policy instead of a Gaussian one; PPO needs the Gaussian.
        hidden: widths of all networks.
        options: as in :class:`o2o_lightning.phases.base.Phase`.
    """

    phase: ClassVar[str] = "offline"
    algorithm: ClassVar[str] = "iql"
    pays_back: ClassVar[int | None] = 7_000
    makes_critic: ClassVar[bool] = True
    agent: IQLAgent

    def __init__(
        self,
        expectile: float = 0.7,
        inverse_temperature: float = 3.0,
        weight_cap: float = 100.0,
        actor_lr: float = 3e-4,
        critic_lr: float = 3e-4,
        value_lr: float = 3e-4,
        anneal_updates: int | None = None,
        discount: float = 0.99,
        polyak: float = 0.005,
        deterministic: bool = False,
        hidden: Sequence[int] = (256, 256),
        **options: Any,
    ) -> None:
        super().__init__(None, **options)
        self.expectile, self.inverse_temperature, self.weight_cap = expectile, inverse_temperature, weight_cap
        self.actor_lr, self.critic_lr, self.value_lr = actor_lr, critic_lr, value_lr
        self.anneal_updates, self.discount, self.polyak = anneal_updates, discount, polyak
        self.deterministic, self.hidden = deterministic, tuple(hidden)

    @classmethod
    def policy_family(cls, arguments: Mapping[str, Any]) -> str | None:
        return DeterministicActor.kind if arguments.get("deterministic") else GaussianActor.kind

    def build(self, source: Handover | None) -> IQLAgent:
        sizes = self.data.sizes()
        actor = DeterministicActor(*sizes, self.hidden) if self.deterministic else GaussianActor(*sizes, self.hidden)
        return IQLAgent(actor, Critics(*sizes, self.hidden, layer_norm=False), ValueNet(sizes[0], self.hidden))

    def learners(self) -> dict[str, tuple[nn.Module | nn.Parameter, float]]:
        return {
            "actor": (self.agent.actor, self.actor_lr),
            "critic": (self.agent.critic, self.critic_lr),
            "value": (self.agent.value, self.value_lr),
        }

    def rates(self) -> dict[str, float]:
        return {"actor": self.actor_lr * cosine_decay(self.updates, self.anneal_updates or self.trainer.max_steps)}

    def update(self, batch: TensorDictBase) -> Iterator[Loss]:
        yield self._losses(batch)
        self.agent.track_critic(self.polyak)

    @step_function
    def _losses(self, batch: TensorDictBase) -> Loss:
        agent, observation, action = self.agent, batch["observation"], batch["action"]
        with torch.no_grad():
            q_target = least(agent.target_critic(observation, action))
            next_value = agent.value(batch["next", "observation"])
            target = td_target(batch["reward"], batch["next", "terminated"], next_value, self.discount)
        value = agent.value(observation)
        difference = q_target - value
        value_loss = expectile_loss(difference, self.expectile)
        q = agent.critic(observation, action)
        critic_loss = iql_critic_loss(q, target)
        weight = advantage_weight(difference, self.inverse_temperature, self.weight_cap)
        actor_loss = weighted_imitation_loss(weight, self._misfit(observation, action))
        # All three see V and Q̄ before this step, and none reaches another's parameters: one backward, one step.
        return Loss(
            value_loss + critic_loss + actor_loss,
            {
                "value_loss": value_loss,
                "critic_loss": critic_loss,
                "actor_loss": actor_loss,
                "value": value,
                "q": q,
                "weight": weight,
            },
        )

    def _misfit(self, observation: Tensor, action: Tensor) -> Tensor:
        actor = self.agent.actor
        if isinstance(actor, GaussianActor):
            return -actor.log_prob(observation, action)
        return (actor.mode(observation) - action).square().sum(-1)
