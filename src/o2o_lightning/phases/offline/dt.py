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
        lr: AdamW's rate, reached linearly after ``warmup_updates``.
        weight_decay: of AdamW.
        warmup_updates: gradient updates until then.
        grad_clip: largest gradient norm.
        context: time steps of a window; acting_context: most steps that it acts on.
        width, layers, heads: of the transformer.
        dropout: of attention, residual branches and embeddings.
        return_scale: factor on returns before the network sees them.
        target_return: raw return that it is asked for when it acts; the dataset's best by default.
    """

    algorithm: ClassVar[str] = "dt"
    family: ClassVar[type[SequencePolicy]] = DecisionTransformer
    actor_kind: ClassVar[str | None] = DecisionTransformer.kind

    def __init__(
        self,
        lr: float = 8e-4,
        weight_decay: float = 1e-4,
        warmup_updates: int = 10_000,
        grad_clip: float = 0.25,
        context: int = 20,
        acting_context: int = 20,
        width: int = 128,
        layers: int = 3,
        heads: int = 1,
        dropout: float = 0.1,
        return_scale: float = 0.001,
        target_return: float | None = None,
    ) -> None:
        super().__init__(
            lr, warmup_updates, grad_clip, context, acting_context, width, layers, heads, dropout, return_scale,
            target_return,
        )  # fmt: skip
        self.weight_decay = weight_decay

    def optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups, weight_decay=self.weight_decay, fused=True)

    def update(self, batch: TensorDictBase) -> Iterator[Loss]:
        action = self.agent.actor(self.window(batch))
        loss = sequence_imitation_loss(action, batch["action"], batch["real"])
        yield Loss(loss, {"imitation_loss": loss, "return_to_go": batch["return_to_go"]})
