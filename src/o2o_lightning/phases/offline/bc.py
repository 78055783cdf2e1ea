"""Offline phase: behaviour cloning of the dataset, or of its best episodes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, cast

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from o2o_lightning.agents.base import Agent
from o2o_lightning.checkpoint.handover import Handover
from o2o_lightning.errors import UserError, at_least
from o2o_lightning.nn.actor import StochasticActor
from o2o_lightning.nn.actors import fresh_actor
from o2o_lightning.objectives.cloning import cloning_loss, entropy_temperature_loss, imitation_loss
from o2o_lightning.phases.base import Loss, Phase
from o2o_lightning.phases.steps import step_function


class BC(Phase):
    """Behaviour cloning: mean square into a deterministic policy, Eq. 52 on the data's actions into a Gaussian one.

    Learns: the policy. Hands on: the policy alone, which leaves the critic to the re-evaluation.

    Args:
        family: family of the policy. The online algorithm's own by default, so that nothing needs to be cloned later.
        fraction: share of the complete episodes, those of the highest return, to learn from; 1 for all of the data.
        actor_lr: Adam's rate.
        temperature: λ_H of Eq. 52 at the beginning, in a Gaussian family; learned towards an entropy of −A.
        temperature_lr: Adam's rate for its logarithm.
        hidden: widths; the family's own by default.
        options: as in :class:`o2o_lightning.phases.base.Phase`.
    """

    phase: ClassVar[str] = "offline"
    algorithm: ClassVar[str] = "bc"
    agent: Agent

    def __init__(
        self,
        family: Literal["deterministic", "squashed_gaussian", "gaussian"] = "deterministic",
        fraction: float = 1.0,
        actor_lr: float = 3e-4,
        temperature: float = 0.1,
        temperature_lr: float = 1e-3,
        hidden: Sequence[int] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(None, **options)
        at_least("--model.temperature", temperature, 1e-6)
        if not 0.0 < fraction <= 1.0:
            raise UserError(f"--model.fraction {fraction:g}: a share above 0, and at most 1, is needed.")
        self.family, self.fraction, self.hidden = family, fraction, hidden
        self.actor_lr, self.temperature_lr = actor_lr, temperature_lr
        self.log_temperature = nn.Parameter(
            torch.tensor(math.log(temperature)), requires_grad=family != "deterministic"
        )

    @classmethod
    def policy_family(cls, arguments: Mapping[str, Any]) -> str | None:
        return str(arguments.get("family", "deterministic"))

    @property
    def method(self) -> str:
        return self.algorithm if self.fraction == 1.0 else f"{self.algorithm}{100 * self.fraction:g}"

    def setup(self, stage: str) -> None:
        self._select()  # first: observations are normalised by what is learned from
        super().setup(stage)

    def teardown(self, stage: str) -> None:
        assert self.data.store is not None
        self.data.store.td_rows = self._td_rows

    def build(self, source: Handover | None) -> Agent:
        return Agent(fresh_actor(self.family, *self.data.sizes(), self.hidden))

    def learners(self) -> dict[str, tuple[nn.Module | nn.Parameter, float]]:
        learners: dict[str, tuple[nn.Module | nn.Parameter, float]] = {"actor": (self.agent.actor, self.actor_lr)}
        if isinstance(self.agent.actor, StochasticActor):
            learners["temperature"] = (self.log_temperature, self.temperature_lr)
        return learners

    def update(self, batch: TensorDictBase) -> Iterator[Loss]:
        if isinstance(self.agent.actor, StochasticActor):
            yield self._density_loss(batch, self.normal_like(batch["action"]))
        else:
            yield self._distance_loss(batch)

    @step_function
    def _distance_loss(self, batch: TensorDictBase) -> Loss:
        loss = imitation_loss(self.agent.actor.mode(batch["observation"]), batch["action"])
        return Loss(loss, {"imitation_loss": loss})

    @step_function
    def _density_loss(self, batch: TensorDictBase, noise: Tensor) -> Loss:
        actor, action = cast(StochasticActor, self.agent.actor), batch["action"]
        log_prob, entropy, _ = actor.density(batch["observation"], action, noise)
        temperature = self.log_temperature.exp()
        loss = cloning_loss(log_prob, entropy, temperature.detach())
        temperature_loss = entropy_temperature_loss(self.log_temperature, entropy, -float(action.shape[-1]))
        # the temperature's loss reaches nothing else, and nothing else the temperature: one backward
        return Loss(
            loss + temperature_loss,
            {"imitation_loss": loss, "log_prob": log_prob, "entropy": entropy, "temperature": temperature},
        )

    def _select(self) -> None:
        store = self.data.store
        if store is None:
            raise UserError("no dataset: a policy is cloned from one. Pass --data.dataset.")
        self._td_rows = store.td_rows
        if self.fraction == 1.0:
            store.td_rows = None  # imitation needs no successor
            return
        count = max(int(self.fraction * int(store.complete.sum())), 1)
        store.td_rows = store.top_episodes(count, td_only=False)
