"""Constrained fine-tuning with SAC."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, cast

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
from o2o_lightning.objectives.sac import soft_value, temperature_loss
from o2o_lightning.phases.base import Loss
from o2o_lightning.phases.online.base import OnlinePhase
from o2o_lightning.phases.settings import Multiplier, Reference, Threshold
from o2o_lightning.phases.steps import step_function


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
        multiplier, threshold, reference: see :mod:`o2o_lightning.phases.settings`; the threshold is a KL, in nats.
        hidden, critic_hidden, layer_norm, critics: networks, only when learning from scratch.
        options: as in :class:`o2o_lightning.phases.online.base.OnlinePhase`.
    """

    algorithm: ClassVar[str] = "o2sac"
    pays_back: ClassVar[int | None] = 10_000
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
        multiplier: Multiplier = Multiplier(),
        threshold: Threshold = Threshold(start=0.125, end=2.0),
        reference: Reference = Reference(),
        hidden: Sequence[int] = (256, 256, 256),
        critic_hidden: Sequence[int] = (256, 256, 256),
        layer_norm: bool = False,
        critics: int = 2,
        **options: Any,
    ) -> None:
        super().__init__(init_from, constraint, multiplier, threshold, reference, **options)
        at_least("--model.temperature", temperature, 1e-6)
        at_least("--model.critics", critics, 1)
        self.temperature, self.temperature_lr = temperature, temperature_lr
        self.actor_lr, self.critic_lr, self.discount, self.polyak = actor_lr, critic_lr, discount, polyak
        self.log_prob_floor = log_prob_floor
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

    def noisy_action(self, observation: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.float32]:
        return self.agent.actor.explore(observation, generator)

    def update(self, batch: TensorDictBase) -> Iterator[Loss]:
        loss = self._losses(batch, self.normal_like(batch["action"]), self.normal_like(batch["action"]))
        if self.multiplier_due(policy_update=True):
            loss = loss._replace(value=loss.value + self.multiplier_loss(loss.metrics["divergence"]))
        yield loss
        self.agent.track_critic(self.polyak)

    @step_function
    def _losses(self, batch: TensorDictBase, policy_noise: Tensor, target_noise: Tensor) -> Loss:
        agent, observation = self.agent, batch["observation"]
        alpha, multiplier = agent.log_alpha.detach().exp(), self.log_multiplier.detach().exp()
        policy = agent.policy_step(observation, agent.actor.distribution(observation), policy_noise, alpha)
        alpha_loss = temperature_loss(agent.log_alpha, policy.log_prob, agent.target_entropy)
        target = self._target(batch, target_noise, alpha, multiplier)
        q = agent.critic(observation, batch["action"])
        loss = critic_loss(q, target)
        metrics = {
            "critic_loss": loss,
            "actor_loss": policy.loss,
            "q": q,
            "q_policy": policy.q,
            "target": target,
            "log_prob": policy.log_prob,
            "temperature": alpha,
        }
        # Every loss is formed before any network moves, and none reaches another's parameters: one backward (D32).
        total = loss + policy.loss + alpha_loss
        if self.constraint:
            divergence = self._divergence(observation, policy.action, policy.log_prob)
            total = total + multiplier * divergence.mean()
            metrics |= {"divergence": divergence, "multiplier": multiplier, "threshold": self.threshold}
        return Loss(total, metrics)

    @torch.no_grad()
    def _target(self, batch: TensorDictBase, noise: Tensor, alpha: Tensor, multiplier: Tensor) -> Tensor:
        agent, next_observation = self.agent, batch["next", "observation"]
        action, log_prob = agent.actor.distribution(next_observation).sample(noise)
        value = soft_value(agent.target_critic(next_observation, action), log_prob, alpha)
        if self.constraint:
            value = value - multiplier * self._divergence(next_observation, action, log_prob)
        return td_target(batch["reward"], batch["next", "terminated"], value, self.discount)

    def _divergence(self, observation: Tensor, action: Tensor, log_prob: Tensor) -> Tensor:
        with torch.no_grad():
            reference = self.reference.distribution(observation)
        # the action carries the gradient into log π_ref, whose parameters are constants
        return kl_estimate(log_prob, reference.log_prob(action), self.log_prob_floor)
