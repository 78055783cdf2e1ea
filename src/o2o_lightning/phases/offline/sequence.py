"""What both Decision Transformers share: windows, warm-up, clipping, and the return that they are asked for."""

from __future__ import annotations

from typing import Any, ClassVar

from tensordict import TensorDictBase
from torch import nn

from o2o_lightning.agents.sequence import SequenceAgent
from o2o_lightning.checkpoint.handover import Handover
from o2o_lightning.data.trajectories import TrajectoryData
from o2o_lightning.errors import UserError, at_least
from o2o_lightning.nn.decision_transformer import SequencePolicy, SequenceSpec, Window
from o2o_lightning.phases.base import Phase


class SequencePhase(Phase):
    """Base of the sequence models; a subclass says which one, its loss and its optimizer.

    Learns: the policy, by imitation of windows. Hands on: the policy, which the clone phase makes one without memory.

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

    phase: ClassVar[str] = "offline"
    family: ClassVar[type[SequencePolicy]]
    agent: SequenceAgent

    def __init__(
        self,
        lr: float,
        weight_decay: float,
        acting_context: int,
        width: int,
        layers: int,
        heads: int,
        warmup_updates: int = 10_000,
        grad_clip: float = 0.25,
        context: int = 20,
        dropout: float = 0.1,
        return_scale: float = 0.001,
        target_return: float | None = None,
    ) -> None:
        super().__init__()
        sizes = {"context": context, "acting_context": acting_context, "layers": layers, "heads": heads, "width": width}
        for name, value in sizes.items():
            at_least(f"--model.{name}", value, 1)
        if acting_context > context:
            raise UserError(
                f"--model.acting_context {acting_context}: the policy learns from {context} steps at a time. Pass at "
                "most --model.context."
            )
        if width % heads:
            raise UserError(f"--model.width {width}: it must be a multiple of --model.heads {heads}.")
        self.lr, self.weight_decay = lr, weight_decay
        self.warmup_updates, self.grad_clip = max(warmup_updates, 1), grad_clip
        self.context, self.return_scale, self.target_return = context, return_scale, target_return
        self.sizes = {**sizes, "dropout": dropout, "return_scale": return_scale}

    @property
    def trajectories(self) -> TrajectoryData:
        """The DataModule, which cuts windows."""
        data = self.data
        if not isinstance(data, TrajectoryData):
            raise UserError(
                f"offline={self.algorithm}: it needs --data o2o_lightning.data.trajectories.TrajectoryData."
            )
        return data

    def build(self, source: Handover | None) -> SequenceAgent:
        observation_dim, action_dim = self.trajectories.sizes()
        target = self.target_return
        if target is None:
            target = float(self.data.manifest()["return_max"])  # there is one: the data has complete episodes
        spec = SequenceSpec(
            kind=self.family.kind,
            observation_dim=observation_dim,
            action_dim=action_dim,
            horizon=self.trajectories.longest(),
            target_return=target,
            **self.sizes,  # type: ignore[arg-type]
        )
        return SequenceAgent(self.family(spec))

    def learners(self) -> dict[str, tuple[nn.Module | nn.Parameter, float]]:
        return {"actor": (self.agent.actor, self.lr)}

    def rates(self) -> dict[str, float]:
        return {"actor": self.lr * min((self.updates + 1) / self.warmup_updates, 1.0)}

    def gradient_limits(self) -> dict[str, float]:
        return {"actor": self.grad_clip}

    def facts(self) -> dict[str, Any]:
        spec = self.agent.actor.spec
        return {"target_return": spec.target_return, "context": spec.context, "acting_context": spec.acting_context}

    def window(self, batch: TensorDictBase) -> Window:
        """The batch as the policy takes it."""
        return Window(batch["return_to_go"], batch["observation"], batch["action"], batch["timestep"])
