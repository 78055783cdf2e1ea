"""Value alignment: the critic is calibrated to the offline policy, while a copy of the policy hunts its errors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from o2o_lightning.agents.td3 import TD3Agent
from o2o_lightning.checkpoint.handover import Handover
from o2o_lightning.nn.deterministic import DeterministicActor
from o2o_lightning.objectives.alignment import (
    action_distance,
    alignment_loss,
    alignment_target_td3,
    calibrated_value_td3,
)
from o2o_lightning.objectives.bellman import least
from o2o_lightning.objectives.td3 import policy_loss, smoothed_action
from o2o_lightning.phases.align.base import AlignPhase
from o2o_lightning.phases.base import Loss
from o2o_lightning.phases.steps import step_function


class AlignTD3(AlignPhase):
    """Value alignment for TD3, Eqs. 15–16 and 40–44.

    Learns: actor and critics. Frozen for the whole phase: the target critics and π_off.
    Hands on: π_on and the aligned critics; the online phase makes its targets copies of them.

    Args:
        init_from: checkpoint of the re-evaluation, or of the offline phase to reuse its critic (ablation).
        actor_lr, critic_lr: Adam's rates; the critics keep their moments of the re-evaluation (D47).
        curvature: k of Eq. 15.
        policy_noise, noise_clip: σ and c of the perturbed action; σ is also the distance's cap.
        options: as in :class:`o2o_lightning.phases.converging.ConvergingPhase`.
    """

    algorithm: ClassVar[str] = "o2td3"
    pays_back: ClassVar[int | None] = 10_000
    actor_kind: ClassVar[str | None] = DeterministicActor.kind
    agent: TD3Agent

    def __init__(
        self,
        init_from: str,
        actor_lr: float = 1e-4,
        critic_lr: float = 3e-4,
        curvature: float = 1.0,
        policy_noise: float = 0.2,
        noise_clip: float = 0.5,
        **options: Any,
    ) -> None:
        super().__init__(init_from, **options)
        self.actor_lr, self.critic_lr, self.curvature = actor_lr, critic_lr, curvature
        self.policy_noise, self.noise_clip = policy_noise, noise_clip

    def build(self, source: Handover | None) -> TD3Agent:
        assert source is not None
        agent = TD3Agent(source.build_actor(), source.build_critic())
        source.load(agent.target_critic, "target_critic")
        return agent

    def learners(self) -> dict[str, tuple[nn.Module | nn.Parameter, float]]:
        return {"actor": (self.agent.actor, self.actor_lr), "critic": (self.agent.critic, self.critic_lr)}

    def transition_cache(self, batch: TensorDictBase) -> dict[str, Tensor]:
        anchor = self.agent.offline_actor.mode(batch["observation"])
        return {"anchor": anchor, "anchor_value": least(self.agent.target_critic(batch["observation"], anchor))}

    def update(self, batch: TensorDictBase) -> Iterator[Loss]:
        yield self._losses(batch, self.normal_like(batch["action"]))

    @step_function
    def _losses(self, batch: TensorDictBase, noise: Tensor) -> Loss:
        agent, observation = self.agent, batch["observation"]
        anchor, anchor_value = batch["anchor"], batch["anchor_value"]
        action = agent.actor(observation)
        with torch.no_grad():
            perturbed = smoothed_action(action, noise, self.policy_noise, self.noise_clip)
            distance = action_distance(perturbed, anchor, self.policy_noise)
            calibrated = calibrated_value_td3(anchor_value, distance, self.curvature)
            target = alignment_target_td3(calibrated, agent.target_critic(observation, perturbed))
        q_perturbed, q_anchor = agent.critic(
            torch.cat((observation, observation)), torch.cat((perturbed, anchor))
        ).chunk(2, -1)
        align, retain = alignment_loss(q_perturbed, target, q_anchor, anchor_value)
        q_policy = agent.critic.first(observation, action, frozen=True)
        actor_loss = policy_loss(q_policy)
        # Both losses see the networks before this step, and neither reaches the other's parameters: one backward.
        return Loss(
            align + retain + actor_loss,
            {
                "align_loss": align,
                "retain_loss": retain,
                "actor_loss": actor_loss,
                "q_perturbed": q_perturbed,
                "q_anchor": q_anchor,
                "target": target,
                "distance": distance,
            },
        )
