"""Constrained fine-tuning with SAC."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDictBase
from torch import Tensor, nn

from o2o_lightning.agents.sac import SACAgent
from o2o_lightning.checkpoint.handover import Handover
from o2o_lightning.errors import at_least
from o2o_lightning.nn.critics import Critics
from o2o_lightning.nn.squashed_gaussian import SquashedGaussianActor
from o2o_lightning.nn.targets import hard_update
from o2o_lightning.objectives.bellman import critic_loss, td_target
from o2o_lightning.objectives.constraint import kl_estimate
from o2o_lightning.objectives.sac import soft_policy_loss, soft_value, temperature_loss
from o2o_lightning.phases.base import Loss
from o2o_lightning.phases.online.base import OnlinePhase
from o2o_lightning.phases.settings import Multiplier, Reference, Threshold


class OnlineSAC(OnlinePhase):
    """Constrained fine-tuning with SAC, Eqs. 36–39.

    Learns: actor, critics, temperature, multiplier. Frozen: π_ref between swaps, and π_off. Without ``constraint`` it
    is plain SAC: "direct" fine-tuning from an offline checkpoint, or from scratch when no checkpoint is given.

    Args:
        init_from: checkpoint of the alignment; of the re-evaluation or the offline phase for ablations.
        constraint: False sets λ ≡ 0 and drops the reference policy.
        temperature: α at the beginning; then tuned towards the target entropy −A.
        actor_lr, critic_lr, temperature_lr: Adam's rates; actor and critics keep their moments of the alignment (D47).
        discount, polyak: γ, and the target critics' rate, applied at every update.
        log_prob_floor: lower bound of log π_ref at sampled actions.
        actor_grad_clip: largest norm of the actor's gradient; None for none, 0.25 in some fixed-interval runs (D15).
        multiplier, threshold, reference: see :mod:`o2o_lightning.phases.settings`; the threshold is a KL, in nats.
        hidden, critic_hidden, layer_norm, critics: networks, only when learning from scratch.
    """

    algorithm: ClassVar[str] = "o2sac"
    actor_kind: ClassVar[str | None] = SquashedGaussianActor.kind
    agent: SACAgent
    reference: SquashedGaussianActor

    def __init__(
        self,
        init_from: str | None = None,
        constraint: bool = True,
        temperature: float = 0.2,
        actor_lr: float = 1e-4,
        critic_lr: float = 3e-4,
        temperature_lr: float = 3e-4,
        discount: float = 0.99,
        polyak: float = 0.005,
        log_prob_floor: float = -50.0,
        actor_grad_clip: float | None = None,
        multiplier: Multiplier = Multiplier(),
        threshold: Threshold = Threshold(start=0.125, end=2.0),
        reference: Reference = Reference(),
        hidden: Sequence[int] = (256, 256, 256),
        critic_hidden: Sequence[int] = (256, 256, 256),
        layer_norm: bool = False,
        critics: int = 2,
    ) -> None:
        super().__init__(init_from, constraint, multiplier, threshold, reference)
        at_least("--model.temperature", temperature, 1e-6)
        at_least("--model.critics", critics, 1)
        self.temperature, self.temperature_lr = temperature, temperature_lr
        self.actor_lr, self.critic_lr, self.discount, self.polyak = actor_lr, critic_lr, discount, polyak
        self.log_prob_floor, self.actor_grad_clip = log_prob_floor, actor_grad_clip
        self.hidden, self.critic_hidden = tuple(hidden), tuple(critic_hidden)
        self.layer_norm, self.critics = layer_norm, critics

    def build(self, source: Handover | None) -> SACAgent:
        if source is None:
            sizes = self.data.sizes()
            critic = Critics(*sizes, self.critic_hidden, self.layer_norm, self.critics)
            return SACAgent(SquashedGaussianActor(*sizes, self.hidden), critic, self.temperature)
        actor = cast(SquashedGaussianActor, source.build_actor())
        agent = SACAgent(actor, source.build_critic(), self.temperature)
        hard_update(agent.offline_actor, source.build_actor("offline_actor"))
        if source.phase != "align":  # after alignment the targets start as copies, else the old critic comes back
            source.load(agent.target_critic, "target_critic")
        return agent

    def learners(self) -> dict[str, tuple[nn.Module | nn.Parameter, float]]:
        return {
            "actor": (self.agent.actor, self.actor_lr),
            "critic": (self.agent.critic, self.critic_lr),
            "temperature": (self.agent.log_alpha, self.temperature_lr),
            "multiplier": (self.log_multiplier, self.multiplier.lr),
        }

    def gradient_limits(self) -> dict[str, float]:
        return {} if self.actor_grad_clip is None else {"actor": self.actor_grad_clip}

    @property
    def warming_up(self) -> bool:
        """Whether actions are uniform: from scratch, until the first update (A7)."""
        return self.source is None and self.updates == 0

    def explore(self, observation: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.float32]:
        if self.warming_up:
            size = self.agent.actor.spec.action_dim
            return generator.uniform(-1.0, 1.0, size).astype(np.float32)
        return self.agent.actor.explore(observation, generator)

    def update(self, batch: TensorDictBase) -> Iterator[Loss]:
        agent, observation = self.agent, batch["observation"]
        alpha, multiplier = agent.log_alpha.detach().exp(), self.log_multiplier.detach().exp()
        policy = agent.actor.distribution(observation)
        action, log_prob = policy.sample(self.normal_like(policy.mean))
        q_policy = agent.critic(observation, action, frozen=True)
        actor_loss = soft_policy_loss(q_policy, log_prob, alpha)
        alpha_loss = temperature_loss(agent.log_alpha, log_prob, agent.target_entropy)
        target = self._target(batch, alpha, multiplier)
        q = agent.critic(observation, batch["action"])
        loss = critic_loss(q, target)
        metrics = {
            "critic_loss": loss,
            "actor_loss": actor_loss,
            "q": q,
            "q_policy": q_policy,
            "target": target,
            "log_prob": log_prob,
            "temperature": alpha,
        }
        total = loss + actor_loss + alpha_loss
        if self.constraint:
            divergence = self._divergence(observation, action, log_prob)
            total = total + multiplier * divergence.mean()
            if self.multiplier_due(policy_update=True):
                total = total + self.multiplier_loss(divergence)
            metrics |= {"divergence": divergence, "multiplier": multiplier, "threshold": self.threshold}
        # Every loss is formed before any network moves, and none reaches another's parameters: one backward (D32).
        yield Loss(total, metrics)
        agent.track_critic(self.polyak)

    @torch.no_grad()
    def _target(self, batch: TensorDictBase, alpha: Tensor, multiplier: Tensor) -> Tensor:
        agent, next_observation = self.agent, batch["next", "observation"]
        policy = agent.actor.distribution(next_observation)
        action, log_prob = policy.sample(self.normal_like(policy.mean))
        value = soft_value(agent.target_critic(next_observation, action), log_prob, alpha)
        if self.constraint:
            value = value - multiplier * self._divergence(next_observation, action, log_prob)
        return td_target(batch["reward"], batch["next", "terminated"], value, self.discount)

    def _divergence(self, observation: Tensor, action: Tensor, log_prob: Tensor) -> Tensor:
        with torch.no_grad():
            reference = self.reference.distribution(observation)
        # the action carries the gradient into log π_ref, whose parameters are constants
        return kl_estimate(log_prob, reference.log_prob(action), self.log_prob_floor)
