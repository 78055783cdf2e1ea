"""Offline phase: conservative Q-learning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

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
from o2o_lightning.objectives.sac import temperature_loss
from o2o_lightning.phases.base import Loss, Phase
from o2o_lightning.phases.steps import step_function

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
        options: as in :class:`o2o_lightning.phases.base.Phase`.
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
        **options: Any,
    ) -> None:
        super().__init__(None, **options)
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
        action = batch["action"]
        many = action.expand(self.samples, *action.shape)
        yield self._losses(
            batch,
            self.normal_like(action),
            self.normal_like(many if self.max_target else action[None]),
            self.uniform(many.shape),
            self.normal_like(many),
            self.normal_like(many),
        )
        self.agent.track_critic(self.polyak)

    @step_function
    def _losses(
        self,
        batch: TensorDictBase,
        policy_noise: Tensor,
        target_noise: Tensor,
        uniform: Tensor,
        next_noise: Tensor,
        current_noise: Tensor,
    ) -> Loss:
        agent, observation = self.agent, batch["observation"]
        # one pass of the trunk for each set of states serves all draws
        current = agent.actor.distribution(observation)
        with torch.no_grad():
            following = agent.actor.distribution(batch["next", "observation"])
        alpha = agent.log_alpha.detach().exp()
        policy = agent.policy_step(observation, current, policy_noise, alpha)
        alpha_loss = temperature_loss(agent.log_alpha, policy.log_prob, agent.target_entropy)

        target = self._target(batch, following, target_noise, alpha)
        q = agent.critic(observation, batch["action"])
        td_loss = critic_loss(q, target)
        with torch.no_grad():
            flat = uniform.new_full(uniform.shape[:-1], uniform_log_density(uniform.shape[-1]))
            sources = [(uniform, flat), following.sample(next_noise), current.sample(current_noise)]
            actions, log_density = (torch.cat(parts) for parts in zip(*sources, strict=True))
        gap = self._gap(observation, q, actions, log_density)
        # CORL forms every loss before it steps any network, and none reaches another's parameters: one backward.
        return Loss(
            td_loss + self._penalty(gap) + policy.loss + alpha_loss,
            {
                "critic_loss": td_loss,
                "conservative_gap": gap,
                "actor_loss": policy.loss,
                "q": q,
                "q_policy": policy.q,
                "target": target,
                "log_prob": policy.log_prob,
                "temperature": alpha,
            },
        )

    @torch.no_grad()
    def _target(self, batch: TensorDictBase, policy: SquashedGaussian, noise: Tensor, alpha: Tensor) -> Tensor:
        action, log_prob = policy.sample(noise)
        q = self.agent.target_critic(_repeat(batch["next", "observation"], len(noise)), action)
        value = max_target_value(q, log_prob, alpha if self.entropy_backup else None)
        return td_target(batch["reward"], batch["next", "terminated"], value, self.discount)

    def _gap(self, observation: Tensor, q_data: Tensor, actions: Tensor, log_density: Tensor) -> Tensor:
        """Δ of each critic ``[E]``, from sampled ``actions`` ``[3N, B, A]``, all evaluated at ``observation``."""
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


def _repeat(observation: Tensor, draws: int) -> Tensor:
    return observation.expand(draws, *observation.shape)
