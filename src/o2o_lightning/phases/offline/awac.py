"""Offline phase: advantage-weighted actor-critic."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, cast

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
from o2o_lightning.objectives.bellman import critic_loss, td_target
from o2o_lightning.phases.base import Loss, Phase


class AWAC(Phase):
    """AWAC as CORL has it: critics of the policy itself, which imitates the data's actions the better they are.

    Args:
        temperature: λ of the imitation weights; towards 0, only actions better than the policy's own count.
        weight_cap: largest imitation weight.
        actor_lr, critic_lr: Adam's rates.
        discount, polyak: γ, and the target critics' rate, applied at every update.
        hidden: widths of the actor and the critics.
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
    ) -> None:
        super().__init__()
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
        agent, actor = self.agent, cast(GaussianActor, self.agent.actor)
        observation, action, next_observation = batch["observation"], batch["action"], batch["next", "observation"]
        with torch.no_grad():
            next_action = actor.sampled(next_observation, self.normal_like(action))
            next_value = agent.target_critic(next_observation, next_action).amin(0)
            target = td_target(batch["reward"], batch["next", "terminated"], next_value, self.discount)
        q = agent.critic(observation, action)
        loss = critic_loss(q, target)
        yield Loss(loss, {"critic_loss": loss, "q": q, "target": target})
        weight = self._weight(observation, action)
        log_prob = actor.log_prob(observation, action)
        loss = awac_policy_loss(weight, log_prob)
        yield Loss(loss, {"actor_loss": loss, "weight": weight, "log_prob": log_prob})
        agent.track_critic(self.polyak)

    @torch.no_grad()
    def _weight(self, observation: Tensor, action: Tensor) -> Tensor:
        sampled = cast(GaussianActor, self.agent.actor).sampled(observation, self.normal_like(action))
        both = self.agent.critic(torch.cat((observation, observation)), torch.cat((action, sampled)))
        return awac_weight(sampled_advantage(*both.chunk(2, -1)), self.temperature, self.weight_cap)
