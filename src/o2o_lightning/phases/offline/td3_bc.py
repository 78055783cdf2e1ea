"""Offline phase: a policy from a fixed dataset."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from o2o_lightning.agents.td3 import TD3Agent
from o2o_lightning.checkpoint.handover import Handover
from o2o_lightning.errors import at_least
from o2o_lightning.nn.critics import Critics
from o2o_lightning.nn.deterministic import DeterministicActor
from o2o_lightning.objectives.bellman import critic_loss, least, td_target
from o2o_lightning.objectives.td3 import smoothed_action
from o2o_lightning.objectives.td3_bc import td3_bc_policy_loss
from o2o_lightning.phases.base import Loss, Phase
from o2o_lightning.phases.steps import step_function


class TD3BC(Phase):
    """TD3+BC: TD3 whose policy also imitates the data.

    Args:
        bc_q_weight: α of the policy loss, larger = less imitation.
        actor_lr, critic_lr: Adam's rates.
        discount: γ.
        polyak: rate of the target networks.
        policy_noise, noise_clip: σ and c of target-policy smoothing.
        policy_delay: critic updates for one policy update.
        hidden: widths of actor and critics.
        options: as in :class:`o2o_lightning.phases.base.Phase`.
    """

    phase: ClassVar[str] = "offline"
    algorithm: ClassVar[str] = "td3_bc"
    pays_back: ClassVar[int | None] = 20_000
    actor_kind: ClassVar[str | None] = DeterministicActor.kind
    makes_critic: ClassVar[bool] = True
    agent: TD3Agent

    def __init__(
        self,
        bc_q_weight: float = 2.5,
        actor_lr: float = 3e-4,
        critic_lr: float = 3e-4,
        discount: float = 0.99,
        polyak: float = 0.005,
        policy_noise: float = 0.2,
        noise_clip: float = 0.5,
        policy_delay: int = 2,
        hidden: Sequence[int] = (256, 256),
        **options: Any,
    ) -> None:
        super().__init__(None, **options)
        at_least("--model.policy_delay", policy_delay, 1)
        self.bc_q_weight, self.actor_lr, self.critic_lr = bc_q_weight, actor_lr, critic_lr
        self.discount, self.polyak = discount, polyak
        self.policy_noise, self.noise_clip, self.policy_delay = policy_noise, noise_clip, policy_delay
        self.hidden = tuple(hidden)

    def build(self, source: Handover | None) -> TD3Agent:
        sizes = self.data.sizes()
        return TD3Agent(DeterministicActor(*sizes, self.hidden), Critics(*sizes, self.hidden, layer_norm=False))

    def learners(self) -> dict[str, tuple[nn.Module | nn.Parameter, float]]:
        return {"actor": (self.agent.actor, self.actor_lr), "critic": (self.agent.critic, self.critic_lr)}

    def update(self, batch: TensorDictBase) -> Iterator[Loss]:
        yield self._critic_loss(batch, self.normal_like(batch["action"]))
        if (self.updates + 1) % self.policy_delay == 0:
            yield self._policy_loss(batch)
            self.agent.track_critic(self.polyak)
            self.agent.track_actor(self.polyak)

    @step_function
    def _critic_loss(self, batch: TensorDictBase, noise: Tensor) -> Loss:
        agent, next_observation = self.agent, batch["next", "observation"]
        with torch.no_grad():
            next_action = smoothed_action(
                agent.target_actor(next_observation), noise, self.policy_noise, self.noise_clip
            )
            next_value = least(agent.target_critic(next_observation, next_action))
            target = td_target(batch["reward"], batch["next", "terminated"], next_value, self.discount)
        q = agent.critic(batch["observation"], batch["action"])
        loss = critic_loss(q, target)
        return Loss(loss, {"critic_loss": loss, "q": q, "target": target})

    @step_function
    def _policy_loss(self, batch: TensorDictBase) -> Loss:
        action = self.agent.actor(batch["observation"])
        q_policy = self.agent.critic.first(batch["observation"], action, frozen=True)
        loss = td3_bc_policy_loss(q_policy, action, batch["action"], self.bc_q_weight, self.mean_magnitude(q_policy))
        return Loss(loss, {"actor_loss": loss, "q_policy": q_policy})
