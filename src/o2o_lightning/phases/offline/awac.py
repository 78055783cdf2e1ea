"""Offline phase: advantage-weighted actor-critic."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, cast

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from o2o_lightning.agents.base import ActorCritic
from o2o_lightning.checkpoint.handover import Handover
from o2o_lightning.errors import at_least
from o2o_lightning.nn.critics import Critics
from o2o_lightning.nn.gaussian import GaussianActor
from o2o_lightning.nn.mlp import uniform_
from o2o_lightning.objectives.awac import awac_policy_loss, awac_weight, sampled_advantage
from o2o_lightning.objectives.bellman import critic_loss, least, td_target
from o2o_lightning.phases.base import Loss, Phase
from o2o_lightning.phases.steps import step_function


class AWAC(Phase):
    """AWAC as CORL has it: critics of the policy itself, which imitates the data's actions the better they are.

    Args:
        temperature: λ of the imitation weights; towards 0, only actions better than the policy's own count.
        weight_cap: largest imitation weight.
        actor_lr, critic_lr: Adam's rates.
        discount, polyak: γ, and the target critics' rate, applied at every update.
        hidden: widths of the actor and the critics.
        options: as in :class:`o2o_lightning.phases.base.Phase`.
    """

    phase: ClassVar[str] = "offline"
    algorithm: ClassVar[str] = "awac"
    actor_kind: ClassVar[str | None] = GaussianActor.kind
    makes_critic: ClassVar[bool] = True
    agent: ActorCritic

    def __init__(
        self,
        temperature: float = 0.3333,
        weight_cap: float = 100.0,
        actor_lr: float = 3e-4,
        critic_lr: float = 3e-4,
        discount: float = 0.99,
        polyak: float = 0.005,
        hidden: Sequence[int] = (256, 256, 256),
        **options: Any,
    ) -> None:
        super().__init__(None, **options)
        at_least("--model.temperature", temperature, 1e-6)
        self.temperature, self.weight_cap = temperature, weight_cap
        self.actor_lr, self.critic_lr = actor_lr, critic_lr
        self.discount, self.polyak, self.hidden = discount, polyak, tuple(hidden)

    def build(self, source: Handover | None) -> ActorCritic:
        sizes = self.data.sizes()
        # orthogonal layers of gain 1 would start a mean that no tanh bounds far outside ±1
        actor, critic = GaussianActor(*sizes, self.hidden, mean="linear"), Critics(*sizes, self.hidden, False)
        uniform_(actor)
        uniform_(critic)
        return ActorCritic(actor, critic)

    def learners(self) -> dict[str, tuple[nn.Module | nn.Parameter, float]]:
        return {"actor": (self.agent.actor, self.actor_lr), "critic": (self.agent.critic, self.critic_lr)}

    def update(self, batch: TensorDictBase) -> Iterator[Loss]:
        yield self._critic_loss(batch, self.normal_like(batch["action"]))
        yield self._policy_loss(batch, self.normal_like(batch["action"]))
        self.agent.track_critic(self.polyak)

    @step_function
    def _critic_loss(self, batch: TensorDictBase, noise: Tensor) -> Loss:
        agent, next_observation = self.agent, batch["next", "observation"]
        with torch.no_grad():
            next_action = self._actor.sampled(next_observation, noise)
            next_value = least(agent.target_critic(next_observation, next_action))
            target = td_target(batch["reward"], batch["next", "terminated"], next_value, self.discount)
        q = agent.critic(batch["observation"], batch["action"])
        loss = critic_loss(q, target)
        return Loss(loss, {"critic_loss": loss, "q": q, "target": target})

    @step_function
    def _policy_loss(self, batch: TensorDictBase, noise: Tensor) -> Loss:
        observation, action = batch["observation"], batch["action"]
        with torch.no_grad():
            sampled = self._actor.sampled(observation, noise)
            both = self.agent.critic(torch.cat((observation, observation)), torch.cat((action, sampled)))
            weight = awac_weight(sampled_advantage(*both.chunk(2, -1)), self.temperature, self.weight_cap)
        log_prob = self._actor.log_prob(observation, action)
        loss = awac_policy_loss(weight, log_prob)
        return Loss(loss, {"actor_loss": loss, "weight": weight, "log_prob": log_prob})

    @property
    def _actor(self) -> GaussianActor:
        return cast(GaussianActor, self.agent.actor)
