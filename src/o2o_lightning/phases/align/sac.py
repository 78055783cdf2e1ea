"""Value alignment for SAC: no action is worth more than its log-probability under the offline policy allows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, cast

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from o2o_lightning.agents.sac import SACAgent
from o2o_lightning.checkpoint.handover import Handover
from o2o_lightning.errors import at_least
from o2o_lightning.nn.squashed_gaussian import SquashedGaussian, SquashedGaussianActor
from o2o_lightning.objectives.alignment import alignment_loss, alignment_target_sac, calibrated_value_sac
from o2o_lightning.objectives.bellman import least
from o2o_lightning.phases.align.base import AlignPhase
from o2o_lightning.phases.base import Loss
from o2o_lightning.phases.steps import step_function


class AlignSAC(AlignPhase):
    """Value alignment for SAC, Eqs. 10–13.

    Learns: actor and critics. Frozen for the whole phase: the target critics, π_off and the temperature.
    Hands on: π_on and the aligned critics; the online phase makes its targets copies of them.

    Args:
        init_from: checkpoint of the re-evaluation, or of the offline phase to reuse its critic (ablation).
        temperature: α, fixed, the re-evaluation's.
        actor_lr, critic_lr: Adam's rates; the critics keep their moments of the re-evaluation (D47).
        log_prob_floor: lower bound of log π_off at explored actions; None for none, as the official code (D13).
        options: as in :class:`o2o_lightning.phases.converging.ConvergingPhase`.
    """

    algorithm: ClassVar[str] = "o2sac"
    pays_back: ClassVar[int | None] = 6_000
    actor_kind: ClassVar[str | None] = SquashedGaussianActor.kind
    agent: SACAgent

    def __init__(
        self,
        init_from: str,
        temperature: float = 0.2,
        actor_lr: float = 1e-4,
        critic_lr: float = 3e-4,
        log_prob_floor: float | None = -50.0,
        **options: Any,
    ) -> None:
        super().__init__(init_from, **options)
        at_least("--model.temperature", temperature, 1e-6)
        self.temperature, self.actor_lr, self.critic_lr = temperature, actor_lr, critic_lr
        self.log_prob_floor = log_prob_floor

    def build(self, source: Handover | None) -> SACAgent:
        assert source is not None
        agent = SACAgent(cast(SquashedGaussianActor, source.build_actor()), source.build_critic(), self.temperature)
        agent.log_alpha.requires_grad_(False)
        source.load(agent.target_critic, "target_critic")
        return agent

    def learners(self) -> dict[str, tuple[nn.Module | nn.Parameter, float]]:
        return {"actor": (self.agent.actor, self.actor_lr), "critic": (self.agent.critic, self.critic_lr)}

    def transition_cache(self, batch: TensorDictBase) -> dict[str, Tensor]:
        offline = self.agent.offline_actor.distribution(batch["observation"])
        anchor = offline.mode()
        return {
            "offline_mean": offline.mean,
            "offline_log_std": offline.log_std,
            "anchor": anchor,
            "anchor_log_prob": offline.log_prob(anchor),
            "anchor_value": least(self.agent.target_critic(batch["observation"], anchor)),
        }

    def update(self, batch: TensorDictBase) -> Iterator[Loss]:
        yield self._losses(batch, self.normal_like(batch["action"]), self.normal_like(batch["action"]))

    @step_function
    def _losses(self, batch: TensorDictBase, explore_noise: Tensor, policy_noise: Tensor) -> Loss:
        agent, observation, alpha = self.agent, batch["observation"], self.agent.log_alpha.exp()
        anchor, anchor_value = batch["anchor"], batch["anchor_value"]
        distribution = agent.actor.distribution(observation)  # serves both draws
        with torch.no_grad():
            explored, _ = distribution.sample(explore_noise)
            offline_log_prob = SquashedGaussian(batch["offline_mean"], batch["offline_log_std"]).log_prob(explored)
            calibrated = calibrated_value_sac(
                anchor_value, batch["anchor_log_prob"], offline_log_prob, alpha, self.log_prob_floor
            )
            target = alignment_target_sac(calibrated, agent.target_critic(observation, explored))
        q_explored, q_anchor = agent.critic(torch.cat((observation, observation)), torch.cat((explored, anchor))).chunk(
            2, -1
        )
        align, retain = alignment_loss(q_explored, target, q_anchor, anchor_value)
        policy = agent.policy_step(observation, distribution, policy_noise, alpha)
        # Both losses see the networks before this step, and neither reaches the other's parameters: one backward.
        return Loss(
            align + retain + policy.loss,
            {
                "align_loss": align,
                "retain_loss": retain,
                "actor_loss": policy.loss,
                "q_explored": q_explored,
                "q_anchor": q_anchor,
                "target": target,
                "log_prob": policy.log_prob,
                "offline_log_prob": offline_log_prob,
            },
        )
