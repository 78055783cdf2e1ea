"""Policy re-evaluation for PPO: a state-value network of the dataset's returns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal, cast

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from o2o_lightning.agents.ppo import PPOAgent
from o2o_lightning.checkpoint.handover import POLICIES, Handover
from o2o_lightning.nn.gaussian import GaussianActor
from o2o_lightning.nn.values import ValueNet
from o2o_lightning.objectives.diagnostics import bellman_residual
from o2o_lightning.objectives.ppo import value_loss
from o2o_lightning.phases.base import Loss
from o2o_lightning.phases.converging import ConvergingPhase
from o2o_lightning.phases.steps import step_function


class ReevaluatePPO(ConvergingPhase):
    """V fitted to the discounted returns of the dataset.

    It approximates the value of the policy that made the data, not of π_off: the auxiliary advantage of the online
    phase makes up for the difference. An episode's return ends with the episode, also where a time limit or the end
    of the recording cut it, so values near such a cut are too small.

    Learns: V, from random weights. Frozen: π_off. Hands on: both, and the running scale of rewards.

    Args:
        init_from: checkpoint of an offline phase, or an imported or cloned policy; it must be a Gaussian one.
        value_lr: Adam's rate.
        discount: γ.
        leak_returns: True lets the return of a time-limited episode run into the next one, as the official code does
            by a misspelt key (D22).
        reward_scaling: ``dynamic`` divides rewards by the running deviation of the discounted return.
        hidden: widths of V.
        options: as in :class:`o2o_lightning.phases.converging.ConvergingPhase`.
    """

    phase: ClassVar[str] = "reevaluate"
    algorithm: ClassVar[str] = "o2ppo"
    actor_kind: ClassVar[str | None] = GaussianActor.kind
    accepts: ClassVar[tuple[str, ...]] = POLICIES
    evaluates: ClassVar[bool] = False
    magnitudes: ClassVar[tuple[str, ...]] = ("value",)
    agent: PPOAgent

    def __init__(
        self,
        init_from: str,
        value_lr: float = 1e-4,
        discount: float = 0.99,
        leak_returns: bool = False,
        reward_scaling: Literal["none", "dynamic"] = "none",
        hidden: Sequence[int] = (256, 256, 256),
        **options: Any,
    ) -> None:
        super().__init__(init_from, **options)
        self.value_lr, self.discount, self.leak_returns = value_lr, discount, leak_returns
        self.reward_scaling, self.hidden = reward_scaling, tuple(hidden)

    def build(self, source: Handover | None) -> PPOAgent:
        assert source is not None
        actor = cast(GaussianActor, source.build_actor().requires_grad_(False))
        return PPOAgent(actor, ValueNet(self.data.sizes()[0], self.hidden, "tanh"), self.discount)

    def learners(self) -> dict[str, tuple[nn.Module | nn.Parameter, float]]:
        return {"value": (self.agent.value, self.value_lr)}

    def on_fit_start(self) -> None:
        data = self.data
        if data.store is None:
            return  # the DataModule refuses in a moment, with a reason
        reward = data.store.leaves["reward"] * data.rewards.scale + data.rewards.shift
        if self.reward_scaling == "dynamic":
            reward = self._scaled(reward, data.store.leaves["next", "terminated"])
        data.store.attach("return_to_go", data.store.returns_to_go(self.discount, self.leak_returns, reward))
        super().on_fit_start()

    def update(self, batch: TensorDictBase) -> Iterator[Loss]:
        yield self._losses(batch)

    @step_function
    def _losses(self, batch: TensorDictBase) -> Loss:
        value = self.agent.value(batch["observation"])
        loss = value_loss(value, batch["return_to_go"])
        return Loss(loss, {"value_loss": loss, "value": value, "return_to_go": batch["return_to_go"]})

    def curves(self, batch: TensorDictBase) -> dict[str, Tensor]:
        value = self.agent.value(batch["observation"])
        return {"value": value.abs().mean(), "residual": bellman_residual(value, batch["return_to_go"])}

    def _scaled(self, reward: Tensor, terminated: Tensor) -> Tensor:
        # As the official code, a time-out does not restart the running return; halfcheetah never terminates. A fit
        # that is started or resumed begins its statistics anew, and so ends with the same ones.
        self.agent.reward_scale = type(self.agent.reward_scale)(self.discount).to(self.device)
        running = torch.zeros(1, dtype=torch.float64)
        scaled, _ = self.agent.reward_scale(reward.unsqueeze(0), terminated.unsqueeze(0), running)
        return scaled.squeeze(0)  # type: ignore[no-any-return]
