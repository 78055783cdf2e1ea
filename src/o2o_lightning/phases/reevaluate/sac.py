"""Policy re-evaluation with SAC's target: a fresh, optimistic critic of the offline policy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, cast

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from o2o_lightning.agents.sac import SACAgent
from o2o_lightning.checkpoint.handover import POLICIES, Handover
from o2o_lightning.errors import at_least
from o2o_lightning.nn.critics import Critics
from o2o_lightning.nn.squashed_gaussian import SquashedGaussian, SquashedGaussianActor
from o2o_lightning.objectives.bellman import critic_loss, td_target
from o2o_lightning.objectives.diagnostics import bellman_residual
from o2o_lightning.objectives.sac import soft_value
from o2o_lightning.phases.base import Loss
from o2o_lightning.phases.converging import ConvergingPhase
from o2o_lightning.phases.steps import step_function


class ReevaluateSAC(ConvergingPhase):
    """Fitted Q-evaluation of π_off by SAC's target, Eq. 3.

    Learns: the critics, from random weights. Frozen: π_off and the temperature.
    Hands on: the offline policy and its optimistic critics.

    Args:
        init_from: checkpoint of an offline phase, or an imported policy.
        temperature: α, fixed; 0.2 for medium data, 0.5 for expert-like data.
        critic_lr: Adam's rate.
        discount, polyak: γ, and the target critics' rate, applied at every update.
        hidden, layer_norm: widths of the new critics, and LayerNorm before their activations.
        critics: how many; one on AntMaze.
        options: as in :class:`o2o_lightning.phases.converging.ConvergingPhase`.
    """

    phase: ClassVar[str] = "reevaluate"
    algorithm: ClassVar[str] = "o2sac"
    pays_back: ClassVar[int | None] = 12_000
    accepts: ClassVar[tuple[str, ...]] = POLICIES
    actor_kind: ClassVar[str | None] = SquashedGaussianActor.kind
    evaluates: ClassVar[bool] = False
    makes_critic: ClassVar[bool] = True
    magnitudes: ClassVar[tuple[str, ...]] = ("q",)
    agent: SACAgent

    def __init__(
        self,
        init_from: str,
        temperature: float = 0.2,
        critic_lr: float = 3e-4,
        discount: float = 0.99,
        polyak: float = 0.005,
        hidden: Sequence[int] = (256, 256, 256),
        layer_norm: bool = True,
        critics: int = 2,
        **options: Any,
    ) -> None:
        super().__init__(init_from, **options)
        at_least("--model.temperature", temperature, 1e-6)
        at_least("--model.critics", critics, 1)
        self.temperature, self.critic_lr, self.discount, self.polyak = temperature, critic_lr, discount, polyak
        self.hidden, self.layer_norm, self.critics = tuple(hidden), layer_norm, critics

    def build(self, source: Handover | None) -> SACAgent:
        assert source is not None
        actor = cast(SquashedGaussianActor, source.build_actor()).requires_grad_(False)
        agent = SACAgent(
            actor, Critics(*self.data.sizes(), self.hidden, self.layer_norm, self.critics), self.temperature
        )
        agent.log_alpha.requires_grad_(False)
        return agent

    def learners(self) -> dict[str, tuple[nn.Module | nn.Parameter, float]]:
        return {"critic": (self.agent.critic, self.critic_lr)}

    def transition_cache(self, batch: TensorDictBase) -> dict[str, Tensor]:
        policy = self.agent.offline_actor.distribution(batch["next", "observation"])
        return {"next_offline_mean": policy.mean, "next_offline_log_std": policy.log_std}

    def curves(self, batch: TensorDictBase) -> dict[str, Tensor]:
        policy = SquashedGaussian(batch["next_offline_mean"], batch["next_offline_log_std"])
        noise = torch.randn(policy.mean.shape, generator=torch.Generator().manual_seed(0)).to(self.device)
        next_action, log_prob = policy.sample(noise)  # the same at every measurement
        next_q = self.agent.critic(batch["next", "observation"], next_action)
        next_value = soft_value(next_q, log_prob, self.agent.log_alpha.exp())
        target = td_target(batch["reward"], batch["next", "terminated"], next_value, self.discount)
        q = self.agent.critic(batch["observation"], batch["action"]).mean(0)
        return {"q": q.abs().mean(), "residual": bellman_residual(q, target)}

    def update(self, batch: TensorDictBase) -> Iterator[Loss]:
        yield self._losses(batch, self.normal_like(batch["action"]))
        self.agent.track_critic(self.polyak)

    @step_function
    def _losses(self, batch: TensorDictBase, noise: Tensor) -> Loss:
        agent = self.agent
        with torch.no_grad():
            policy = SquashedGaussian(batch["next_offline_mean"], batch["next_offline_log_std"])
            next_action, log_prob = policy.sample(noise)
            next_q = agent.target_critic(batch["next", "observation"], next_action)
            next_value = soft_value(next_q, log_prob, agent.log_alpha.exp())
            target = td_target(batch["reward"], batch["next", "terminated"], next_value, self.discount)
        q = agent.critic(batch["observation"], batch["action"])
        loss = critic_loss(q, target)
        return Loss(loss, {"critic_loss": loss, "q": q, "target": target, "log_prob": log_prob})
