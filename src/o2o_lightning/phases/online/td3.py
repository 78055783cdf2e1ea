"""Constrained fine-tuning with TD3."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDictBase
from torch import Tensor, nn

from o2o_lightning.agents.td3 import TD3Agent
from o2o_lightning.checkpoint.handover import Handover
from o2o_lightning.errors import at_least
from o2o_lightning.nn.critics import Critics
from o2o_lightning.nn.deterministic import DeterministicActor
from o2o_lightning.nn.targets import hard_update
from o2o_lightning.objectives.bellman import critic_loss, least, td_target
from o2o_lightning.objectives.constraint import squared_divergence
from o2o_lightning.objectives.td3 import normalized_policy_loss, policy_loss, smoothed_action
from o2o_lightning.phases.base import Loss
from o2o_lightning.phases.online.base import OnlinePhase
from o2o_lightning.phases.settings import Multiplier, Reference, Threshold
from o2o_lightning.phases.steps import step_function


class OnlineTD3(OnlinePhase):
    """Constrained fine-tuning with TD3, Eqs. 45–47.

    Learns: actor, critics, multiplier. Frozen: π_ref between swaps, and π_off. Without ``constraint`` it is plain TD3:
    "direct" fine-tuning from an offline checkpoint, or from scratch when no checkpoint is given.

    Args:
        init_from: checkpoint of the alignment; of the re-evaluation or the offline phase for ablations.
        constraint: False sets λ ≡ 0 and drops the reference policy.
        actor_lr, critic_lr: Adam's rates; actor and critics keep their moments of the alignment (D47).
        discount, polyak: γ, and the targets' rate, applied with each policy update.
        policy_noise, noise_clip, policy_delay: target-policy smoothing, and critic updates for a policy update.
        exploration_noise: σ of the Gaussian noise on actions.
        normalize_q: divide the policy loss by mean|Q| (D9).
        penalty: divergence in the critic's target: of each next state, or the whole batch's mean (D10).
        multiplier, threshold, reference: see :mod:`o2o_lightning.phases.settings`.
        hidden, layer_norm: networks, only when learning from scratch.
        options: as in :class:`o2o_lightning.phases.online.base.OnlinePhase`.
    """

    algorithm: ClassVar[str] = "o2td3"
    pays_back: ClassVar[int | None] = 20_000
    actor_kind: ClassVar[str | None] = DeterministicActor.kind
    agent: TD3Agent

    def __init__(
        self,
        init_from: str | None = None,
        constraint: bool = True,
        actor_lr: float = 1e-4,
        critic_lr: float = 3e-4,
        discount: float = 0.99,
        polyak: float = 0.005,
        policy_noise: float = 0.2,
        noise_clip: float = 0.5,
        policy_delay: int = 2,
        exploration_noise: float = 0.1,
        normalize_q: bool = True,
        penalty: Literal["state", "batch"] = "state",
        multiplier: Multiplier = Multiplier(),
        threshold: Threshold = Threshold(),
        reference: Reference = Reference(),
        hidden: Sequence[int] = (256, 256),
        layer_norm: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(init_from, constraint, multiplier, threshold, reference, **options)
        at_least("--model.policy_delay", policy_delay, 1)
        self.actor_lr, self.critic_lr = actor_lr, critic_lr
        self.discount, self.polyak = discount, polyak
        self.policy_noise, self.noise_clip, self.policy_delay = policy_noise, noise_clip, policy_delay
        self.exploration_noise, self.normalize_q, self.penalty = exploration_noise, normalize_q, penalty
        self.hidden, self.layer_norm = tuple(hidden), layer_norm

    def build(self, source: Handover | None) -> TD3Agent:
        if source is None:
            sizes = self.data.sizes()
            return TD3Agent(DeterministicActor(*sizes, self.hidden), Critics(*sizes, self.hidden, self.layer_norm))
        agent = TD3Agent(source.build_actor(), source.build_critic())
        hard_update(agent.offline_actor, source.build_actor("offline_actor"))
        if source.phase != "align":  # after alignment the targets start as copies, else the old critic comes back
            hard_update(agent.target_actor, source.build_actor("target_actor"))
            source.load(agent.target_critic, "target_critic")
        return agent

    def learners(self) -> dict[str, tuple[nn.Module | nn.Parameter, float]]:
        return {
            "actor": (self.agent.actor, self.actor_lr),
            "critic": (self.agent.critic, self.critic_lr),
            "multiplier": (self.log_multiplier, self.multiplier.lr),
        }

    def noisy_action(self, observation: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.float32]:
        action = self.agent.actor.act(observation)
        noise = generator.standard_normal(action.shape, dtype=np.float32) * self.exploration_noise
        return np.clip(action + noise, -1.0, 1.0)

    def update(self, batch: TensorDictBase) -> Iterator[Loss]:
        yield self._critic_loss(batch, self.normal_like(batch["action"]))
        if (self.updates + 1) % self.policy_delay == 0:
            loss = self._policy_loss(batch)
            if self.multiplier_due(policy_update=True):
                loss = loss._replace(value=loss.value + self.multiplier_loss(loss.metrics["divergence"]))
            yield loss
            self.agent.track_critic(self.polyak)
            self.agent.track_actor(self.polyak)
        elif self.multiplier_due(policy_update=False):
            with torch.no_grad():
                observation = batch["observation"]
                divergence = squared_divergence(self.agent.actor(observation), self.reference(observation))
            yield Loss(self.multiplier_loss(divergence), {})

    @step_function
    def _critic_loss(self, batch: TensorDictBase, noise: Tensor) -> Loss:
        agent, action, next_observation = self.agent, batch["action"], batch["next", "observation"]
        with torch.no_grad():
            next_action = smoothed_action(
                agent.target_actor(next_observation), noise, self.policy_noise, self.noise_clip
            )
            next_value = least(agent.target_critic(next_observation, next_action))
            if self.constraint:
                divergence = squared_divergence(agent.actor(next_observation), self.reference(next_observation))
                penalty = divergence.mean(-1) if self.penalty == "state" else self.ranks.mean(divergence.mean())
                next_value = next_value - self.log_multiplier.exp() * penalty
            target = td_target(batch["reward"], batch["next", "terminated"], next_value, self.discount)
        q = agent.critic(batch["observation"], action)
        loss = critic_loss(q, target)
        return Loss(loss, {"critic_loss": loss, "q": q, "target": target})

    @step_function
    def _policy_loss(self, batch: TensorDictBase) -> Loss:
        observation = batch["observation"]
        action = self.agent.actor(observation)
        q = self.agent.critic.first(observation, action, frozen=True)
        loss = normalized_policy_loss(q, self.mean_magnitude(q)) if self.normalize_q else policy_loss(q)
        metrics = {"actor_loss": loss, "q_policy": q}
        if not self.constraint:
            return Loss(loss, metrics)
        with torch.no_grad():
            reference_action = self.reference(observation)
        divergence = squared_divergence(action, reference_action)
        multiplier = self.log_multiplier.detach().exp()
        metrics |= {"divergence": divergence, "multiplier": multiplier, "threshold": self.threshold}
        return Loss(loss + multiplier * divergence.mean(), metrics)
