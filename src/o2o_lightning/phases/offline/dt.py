"""Offline phase: Decision Transformer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from tensordict import TensorDictBase

from o2o_lightning.nn.decision_transformer import DecisionTransformer, SequencePolicy
from o2o_lightning.objectives.decision_transformer import sequence_imitation_loss
from o2o_lightning.phases.base import Loss
from o2o_lightning.phases.offline.sequence import SequencePhase


class DT(SequencePhase):
    """Decision Transformer: imitates the data's actions, told what return came of them.

    Args:
        lr, weight_decay: of AdamW.
        acting_context, width, layers, heads, options: as in
            :class:`o2o_lightning.phases.offline.sequence.SequencePhase`.
    """

    algorithm: ClassVar[str] = "dt"
    family: ClassVar[type[SequencePolicy]] = DecisionTransformer
    actor_kind: ClassVar[str | None] = DecisionTransformer.kind

    def __init__(
        self,
        lr: float = 8e-4,
        weight_decay: float = 1e-4,
        acting_context: int = 20,
        width: int = 128,
        layers: int = 3,
        heads: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(lr, weight_decay, acting_context, width, layers, heads, **options)

    def optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups, weight_decay=self.weight_decay, fused=True)

    def update(self, batch: TensorDictBase) -> Iterator[Loss]:
        action = self.agent.actor(self.window(batch))
        loss = sequence_imitation_loss(action, batch["action"], batch["real"])
        yield Loss(loss, {"imitation_loss": loss, "return_to_go": batch["return_to_go"]})
