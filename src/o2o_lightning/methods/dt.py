"""Decision Transformer (Chen et al. 2021, https://arxiv.org/abs/2106.01345), and what its online sibling shares."""

from typing import Any, ClassVar

import torch

from o2o_lightning.errors import UserError, at_least
from o2o_lightning.methods.method import Batch, Learners, Loss, Method, Moment, Noise, Source, Task
from o2o_lightning.nn.decision_transformer import DecisionTransformer, SequencePolicy, SequenceSpec, Window
from o2o_lightning.nn.optimizers import AdamW
from o2o_lightning.objectives.imitation import sequence_imitation_loss


class SequenceMethod(Method):
    """Imitation of windows of episodes, told what return came of them.

    Learns: the policy. Hands on: the policy, which the clone phase makes one without memory.

    Args:
        lr: the optimizer's rate, reached linearly after ``warmup_updates``.
        weight_decay: the optimizer's.
        warmup_updates: gradient updates until the rate is reached.
        grad_clip: largest gradient norm.
        context: time steps of a window; acting_context: most steps that it acts on.
        width, layers, heads: of the transformer.
        dropout: of attention, residual branches and embeddings.
        return_scale: factor on returns before the network sees them.
        target_return: raw return that it is asked for when it acts; the dataset's best by default.
    """

    needs: ClassVar[tuple[str, ...]] = ("window",)
    draws: ClassVar[bool] = True
    transformer: ClassVar[type[SequencePolicy]]
    lr: float
    weight_decay: float
    acting_context: int
    width: int
    layers: int
    heads: int
    warmup_updates: int = 10_000
    grad_clip: float = 0.25
    context: int = 20
    dropout: float = 0.1
    return_scale: float = 0.001
    target_return: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("context", "acting_context", "layers", "heads", "width"):
            at_least(f"--model.{name}", getattr(self, name), 1)
        if self.acting_context > self.context:
            raise UserError(
                f"--model.acting_context {self.acting_context}: the policy learns from {self.context} steps at a time. "
                "Pass at most --model.context."
            )
        if self.width % self.heads:
            raise UserError(f"--model.width {self.width}: it must be a multiple of --model.heads {self.heads}.")

    def build(self, task: Task, source: Source | None = None) -> None:
        target = task.best_return if self.target_return is None else self.target_return
        assert target is not None and task.horizon is not None  # the data has complete episodes
        spec = SequenceSpec(
            kind=self.transformer.kind,
            observation_dim=task.observation_dim,
            action_dim=task.action_dim,
            width=self.width,
            layers=self.layers,
            heads=self.heads,
            dropout=self.dropout,
            context=self.context,
            acting_context=self.acting_context,
            horizon=task.horizon,
            return_scale=self.return_scale,
            target_return=target,
        )
        self.actor = self.transformer(spec)

    def learners(self) -> Learners:
        return {"actor": (self.actor, self.lr)}

    def rates(self, moment: Moment) -> dict[str, float]:
        return {"actor": self.lr * min((moment.update + 1) / max(self.warmup_updates, 1), 1.0)}

    def gradient_limits(self) -> dict[str, float]:
        return {"actor": self.grad_clip}

    def step(self, batch: Batch, noise: Noise) -> Loss:
        raise NotImplementedError(f"{type(self).__name__}.step")

    def facts(self) -> dict[str, Any]:
        spec = self.actor.spec
        return {"target_return": spec.target_return, "context": spec.context, "acting_context": spec.acting_context}


def window(batch: Batch) -> Window:
    """The batch as a sequence policy takes it."""
    return Window(batch["return_to_go"], batch["observation"], batch["action"], batch["timestep"])


class DT(SequenceMethod):
    """Imitates the data's actions.

    Args:
        lr, weight_decay: of AdamW.
    """

    name: ClassVar[str] = "dt"
    actor_kind: ClassVar[str | None] = DecisionTransformer.kind
    transformer: ClassVar[type[SequencePolicy]] = DecisionTransformer
    lr: float = 8e-4
    weight_decay: float = 1e-4
    acting_context: int = 20
    width: int = 128
    layers: int = 3
    heads: int = 1

    def optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return AdamW(groups, self.weight_decay)

    def step(self, batch: Batch, noise: Noise) -> Loss:
        loss = sequence_imitation_loss(self.actor(window(batch)), batch["action"], batch["real"])
        return Loss(loss, {"imitation_loss": loss, "return_to_go": batch["return_to_go"]})
