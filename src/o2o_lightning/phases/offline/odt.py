"""Offline phase: Online Decision Transformer, its offline part."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar, cast

import torch
from tensordict import TensorDictBase
from torch import nn

from o2o_lightning.nn.decision_transformer import OnlineDecisionTransformer, SequencePolicy
from o2o_lightning.nn.lamb import LAMB
from o2o_lightning.objectives.decision_transformer import sequence_likelihood_loss, sequence_temperature_loss
from o2o_lightning.phases.base import Loss
from o2o_lightning.phases.offline.sequence import SequencePhase

DATA_LIMIT = 1.0 - 1e-6  # the data's actions are clipped to it: atanh(±1) is infinite


class ODT(SequencePhase):
    """Online Decision Transformer: the likelihood of the data's actions, with an entropy held at −A.

    Args:
        lr, weight_decay: of LAMB.
        acting_context, width, layers, heads, options: as in
            :class:`o2o_lightning.phases.offline.sequence.SequencePhase`.
        temperature: weight of the entropy at the beginning; temperature_lr: Adam's rate for its logarithm.
    """

    algorithm: ClassVar[str] = "odt"
    family: ClassVar[type[SequencePolicy]] = OnlineDecisionTransformer
    actor_kind: ClassVar[str | None] = OnlineDecisionTransformer.kind

    def __init__(
        self,
        lr: float = 1e-4,
        weight_decay: float = 5e-4,
        acting_context: int = 5,
        width: int = 512,
        layers: int = 4,
        heads: int = 4,
        temperature: float = 0.1,
        temperature_lr: float = 1e-4,
        **options: Any,
    ) -> None:
        super().__init__(lr, weight_decay, acting_context, width, layers, heads, **options)
        self.temperature_lr = temperature_lr
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))

    def learners(self) -> dict[str, tuple[nn.Module | nn.Parameter, float]]:
        return {**super().learners(), "temperature": (self.log_temperature, self.temperature_lr)}

    def optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        # a group without decay takes Adam's step, which is what the temperature has
        decay = {"actor": self.weight_decay, "temperature": 0.0}
        return LAMB([{**group, "weight_decay": decay[group["name"]]} for group in groups])

    @property
    def target_entropy(self) -> float:
        """H̄ = −A."""
        return -float(self.agent.actor.spec.action_dim)

    def update(self, batch: TensorDictBase) -> Iterator[Loss]:
        policy = cast(OnlineDecisionTransformer, self.agent.actor).distribution(self.window(batch))
        log_prob = policy.log_prob(batch["action"], DATA_LIMIT)
        entropy = -policy.sample(self.normal_like(batch["action"]))[1]
        temperature, real = self.log_temperature.exp(), batch["real"]
        loss = sequence_likelihood_loss(log_prob, entropy, temperature.detach(), real)
        temperature_loss = sequence_temperature_loss(self.log_temperature, entropy, real, self.target_entropy)
        # the temperature's loss reaches nothing else, and nothing else the temperature: one backward
        yield Loss(
            loss + temperature_loss,
            {
                "sequence_loss": loss,
                "log_prob": log_prob,
                "entropy": entropy,
                "temperature": temperature,
                "return_to_go": batch["return_to_go"],
            },
        )
