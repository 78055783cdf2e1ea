"""Policy re-evaluation: a fresh, optimistic critic of the offline policy, by the online evaluation rule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from o2o_lightning.agents.td3 import TD3Agent
from o2o_lightning.checkpoint.handover import POLICIES, Handover
from o2o_lightning.nn.critics import Critics
from o2o_lightning.nn.deterministic import DeterministicActor
from o2o_lightning.objectives.bellman import critic_loss, least, td_target
from o2o_lightning.objectives.diagnostics import bellman_residual
from o2o_lightning.objectives.td3 import smoothed_action
from o2o_lightning.phases.base import Loss
from o2o_lightning.phases.converging import ConvergingPhase
from o2o_lightning.phases.steps import step_function


class ReevaluateTD3(ConvergingPhase):
    """Fitted Q-evaluation of π_off by TD3's target, Eq. 6.

    Learns: the critics, from random weights. Frozen: π_off, which is also the target actor.
    Hands on: the offline policy and its optimistic critics.

    Args:
        init_from: checkpoint of an offline phase, or an imported policy.
        critic_lr: Adam's rate.
        discount, polyak: γ, and the target critics' rate, applied at every update.
        policy_noise, noise_clip: σ and c of target-policy smoothing.
        hidden, layer_norm: widths of the new critics, and LayerNorm before their activations (off on AntMaze, D12).
        options: as in :class:`o2o_lightning.phases.converging.ConvergingPhase`.
    """

    phase: ClassVar[str] = "reevaluate"
    algorithm: ClassVar[str] = "o2td3"
    pays_back: ClassVar[int | None] = 15_000
    actor_kind: ClassVar[str | None] = DeterministicActor.kind
    accepts: ClassVar[tuple[str, ...]] = POLICIES
    evaluates: ClassVar[bool] = False
    makes_critic: ClassVar[bool] = True
    magnitudes: ClassVar[tuple[str, ...]] = ("q",)
    agent: TD3Agent

    def __init__(
        self,
        init_from: str,
        critic_lr: float = 3e-4,
        discount: float = 0.99,
        polyak: float = 0.005,
        policy_noise: float = 0.2,
        noise_clip: float = 0.5,
        hidden: Sequence[int] = (256, 256),
        layer_norm: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(init_from, **options)
        self.critic_lr, self.discount, self.polyak = critic_lr, discount, polyak
        self.policy_noise, self.noise_clip = policy_noise, noise_clip
        self.hidden, self.layer_norm = tuple(hidden), layer_norm

    def build(self, source: Handover | None) -> TD3Agent:
        assert source is not None
        actor = source.build_actor().requires_grad_(False)
        return TD3Agent(actor, Critics(*self.data.sizes(), self.hidden, self.layer_norm))

    def learners(self) -> dict[str, tuple[nn.Module | nn.Parameter, float]]:
        return {"critic": (self.agent.critic, self.critic_lr)}

    def transition_cache(self, batch: TensorDictBase) -> dict[str, Tensor]:
        return {"next_offline_action": self.agent.offline_actor.mode(batch["next", "observation"])}

    def curves(self, batch: TensorDictBase) -> dict[str, Tensor]:
        next_value = least(self.agent.critic(batch["next", "observation"], batch["next_offline_action"]))
        target = td_target(batch["reward"], batch["next", "terminated"], next_value, self.discount)
        q = self.agent.critic(batch["observation"], batch["action"]).mean(0)
        return {"q": q.abs().mean(), "residual": bellman_residual(q, target)}

    def update(self, batch: TensorDictBase) -> Iterator[Loss]:
        yield self._losses(batch, self.normal_like(batch["action"]))
        self.agent.track_critic(self.polyak)

    @step_function
    def _losses(self, batch: TensorDictBase, noise: Tensor) -> Loss:
        agent, next_observation = self.agent, batch["next", "observation"]
        with torch.no_grad():
            next_action = smoothed_action(batch["next_offline_action"], noise, self.policy_noise, self.noise_clip)
            next_value = least(agent.target_critic(next_observation, next_action))
            target = td_target(batch["reward"], batch["next", "terminated"], next_value, self.discount)
        q = agent.critic(batch["observation"], batch["action"])
        loss = critic_loss(q, target)
        return Loss(loss, {"critic_loss": loss, "q": q, "target": target})
