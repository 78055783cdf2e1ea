"""Offline phase: conservative Q-learning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from o2o_lightning.agents.sac import SACAgent
from o2o_lightning.checkpoint.handover import Handover
from o2o_lightning.errors import at_least
from o2o_lightning.nn.critics import Critics
from o2o_lightning.nn.squashed_gaussian import SquashedGaussian, SquashedGaussianActor
from o2o_lightning.objectives.bellman import critic_loss, td_target
from o2o_lightning.objectives.cql import (
    conservative_gap,
    conservative_value,
    lagrange_loss,
    lagrange_weight,
    max_target_value,
    uniform_log_density,
)
from o2o_lightning.objectives.sac import soft_policy_loss, temperature_loss
from o2o_lightning.phases.base import Loss, Phase

BLOCK_ROWS = 1280


class CQL(Phase):
    """CQL as CORL has it: SAC whose critics also push down the values of actions beside the data.

    Args:
        conservative_weight: w of the conservative term.
        actor_lr, critic_lr: Adam's rates; the temperature learns at the actor's, the Lagrange multiplier at the
            critics'.
        temperature: α at the beginning.
        discount, polyak: γ, and the target critics' rate, applied at every update.
        samples: N actions of each of three sources: uniform, π(·|s'), π(·|s).
        importance_sampling: correct each sampled action's value by its log-density.
        softmax_temperature: T of the soft maximum.
        lagrange_gap: train the weight so that the gap is this large; None keeps it at one.
        gap_min, gap_max: clip of each state's gap; None for none.
        max_target: bootstrap from the best of N actions rather than from one.
        entropy_backup: subtract α·log π in the bootstrap.
        hidden, critic_hidden: widths of the actor, and of both critics (CORL's second one is shallower, D27).
    """

    phase: ClassVar[str] = "offline"
    algorithm: ClassVar[str] = "cql"
    actor_kind: ClassVar[str | None] = SquashedGaussianActor.kind
    makes_critic: ClassVar[bool] = True
    agent: SACAgent

    def __init__(
        self,
        conservative_weight: float = 10.0,
        actor_lr: float = 3e-5,
        critic_lr: float = 3e-4,
        temperature: float = 1.0,
        discount: float = 0.99,
        polyak: float = 0.005,
        samples: int = 10,
        importance_sampling: bool = True,
        softmax_temperature: float = 1.0,
        lagrange_gap: float | None = None,
        gap_min: float | None = None,
        gap_max: float | None = None,
        max_target: bool = False,
        entropy_backup: bool = False,
        hidden: Sequence[int] = (256, 256, 256),
        critic_hidden: Sequence[int] = (256, 256, 256),
    ) -> None:
        super().__init__()
        at_least("--model.temperature", temperature, 1e-6)
        at_least("--model.softmax_temperature", softmax_temperature, 1e-6)
        at_least("--model.samples", samples, 1)
        self.conservative_weight, self.temperature = conservative_weight, temperature
        self.actor_lr, self.critic_lr = actor_lr, critic_lr
        self.discount, self.polyak = discount, polyak
        self.samples, self.importance_sampling = samples, importance_sampling
        self.softmax_temperature = softmax_temperature
        self.lagrange_gap, self.gap_min, self.gap_max = lagrange_gap, gap_min, gap_max
        self.max_target, self.entropy_backup = max_target, entropy_backup
        self.hidden, self.critic_hidden = tuple(hidden), tuple(critic_hidden)
        self.log_lagrange = nn.Parameter(torch.tensor(1.0), requires_grad=lagrange_gap is not None)

    def build(self, source: Handover | None) -> SACAgent:
        sizes = self.data.sizes()
        critic = Critics(*sizes, self.critic_hidden, layer_norm=False)
        return SACAgent(SquashedGaussianActor(*sizes, self.hidden), critic, self.temperature)

    def learners(self) -> dict[str, tuple[nn.Module | nn.Parameter, float]]:
        learners: dict[str, tuple[nn.Module | nn.Parameter, float]] = {
            "actor": (self.agent.actor, self.actor_lr),
            "critic": (self.agent.critic, self.critic_lr),
            "temperature": (self.agent.log_alpha, self.actor_lr),
        }
        return learners if self.lagrange_gap is None else {**learners, "lagrange": (self.log_lagrange, self.critic_lr)}

    def update(self, batch: TensorDictBase) -> Iterator[Loss]:
        agent, observation = self.agent, batch["observation"]
        # one pass of the trunk for each set of states serves all draws
        policy = agent.actor.distribution(observation)
        with torch.no_grad():
            next_policy = agent.actor.distribution(batch["next", "observation"])
        alpha = agent.log_alpha.detach().exp()

        action, log_prob = policy.sample(self.normal_like(policy.mean))
        q_policy = agent.critic(observation, action, frozen=True)
        actor_loss = soft_policy_loss(q_policy, log_prob, alpha)
        alpha_loss = temperature_loss(agent.log_alpha, log_prob, agent.target_entropy)

        target = self._target(batch, next_policy, alpha)
        q = agent.critic(observation, batch["action"])
        td_loss = critic_loss(q, target)
        gap = self._gap(observation, q, policy.detach(), next_policy)
        penalty = self._penalty(gap)
        # CORL forms every loss before it steps any network, and none reaches another's parameters: one backward.
        yield Loss(
            td_loss + penalty + actor_loss + alpha_loss,
            {
                "critic_loss": td_loss,
                "conservative_gap": gap,
                "actor_loss": actor_loss,
                "q": q,
                "q_policy": q_policy,
                "target": target,
                "log_prob": log_prob,
                "temperature": alpha,
            },
        )
        agent.track_critic(self.polyak)

    @torch.no_grad()
    def _target(self, batch: TensorDictBase, next_policy: SquashedGaussian, alpha: Tensor) -> Tensor:
        draws = self.samples if self.max_target else 1
        action, log_prob = next_policy.sample(self._normal(draws, next_policy.mean))
        q = self.agent.target_critic(_repeat(batch["next", "observation"], draws), action)
        value = max_target_value(q, log_prob, alpha if self.entropy_backup else None)
        return td_target(batch["reward"], batch["next", "terminated"], value, self.discount)

    def _gap(
        self, observation: Tensor, q_data: Tensor, policy: SquashedGaussian, next_policy: SquashedGaussian
    ) -> Tensor:
        """Δ of each critic ``[E]``, from N actions of each source, all evaluated at ``observation``."""
        with torch.no_grad():
            uniform = self.uniform((self.samples, *policy.mean.shape))
            flat = uniform.new_full(uniform.shape[:-1], uniform_log_density(uniform.shape[-1]))
            sources = [
                (uniform, flat),
                next_policy.sample(self._normal(self.samples, policy.mean)),
                policy.sample(self._normal(self.samples, policy.mean)),
            ]
            actions, log_density = (torch.cat(parts) for parts in zip(*sources, strict=True))
        # in blocks that stay in the cache: a tenth faster than all rows at once
        blocks = torch.split(actions, max(1, BLOCK_ROWS // len(observation)))
        q = torch.cat([self.agent.critic(_repeat(observation, len(block)), block) for block in blocks], 1)
        if self.importance_sampling:
            value = conservative_value(q, log_density, self.softmax_temperature)
        else:
            value = conservative_value(torch.cat((q, q_data[:, None]), 1), None, self.softmax_temperature)
        return conservative_gap(value, q_data, self.gap_min, self.gap_max)

    def _penalty(self, gap: Tensor) -> Tensor:
        if self.lagrange_gap is None:
            return self.conservative_weight * gap.sum()
        weight = lagrange_weight(self.log_lagrange.detach()) * self.conservative_weight
        loss = weight * (gap - self.lagrange_gap).sum()
        return loss + lagrange_loss(self.log_lagrange, gap, self.lagrange_gap, self.conservative_weight)

    def _normal(self, draws: int, like: Tensor) -> Tensor:
        return self.normal_like(like.expand(draws, *like.shape))


def _repeat(observation: Tensor, draws: int) -> Tensor:
    return observation.expand(draws, *observation.shape)
