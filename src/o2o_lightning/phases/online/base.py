"""What constrained fine-tuning shares across algorithms: reference policy, multiplier, threshold, environment clock."""

from __future__ import annotations

import math
from typing import Any, ClassVar, cast

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from numpy.typing import NDArray
from torch import Tensor, nn

from o2o_lightning.agents.base import Agent
from o2o_lightning.callbacks.reference import ReferencePolicy
from o2o_lightning.callbacks.threshold import ThresholdSchedule
from o2o_lightning.checkpoint.handover import POLICIES
from o2o_lightning.envs.episodes import Evaluation
from o2o_lightning.nn.actor import Actor
from o2o_lightning.nn.targets import frozen_copy, hard_update
from o2o_lightning.objectives.constraint import multiplier_loss
from o2o_lightning.phases.base import Phase
from o2o_lightning.phases.settings import Multiplier, Reference, Threshold


class ReferencedPhase(Phase):
    """What every online phase shares: the environment's clock and the reference policy π_ref, if ``follows``."""

    phase: ClassVar[str] = "online"
    accepts: ClassVar[tuple[str, ...]] = ("align", "reevaluate", *POLICIES)
    clock_name: ClassVar[str] = "env_steps"
    evaluates_at_start: ClassVar[bool] = True

    agent: Agent
    reference: Actor
    reference_score: Tensor
    start_values: dict[str, float]

    def __init__(self, init_from: str | None, follows: bool, reference: Reference, **options: Any) -> None:
        super().__init__(init_from, **options)
        self.follows, self.reference_settings = follows, reference
        self.register_buffer("reference_score", torch.tensor(-math.inf, dtype=torch.float64))

    @property
    def clock(self) -> int:
        return self.env_steps

    @property
    def method(self) -> str:
        return self.algorithm if self.follows else self.algorithm.removeprefix("o2")

    @property
    def waits_for_scores(self) -> bool:
        return self.follows and self.reference_settings.mode == "best"

    @property
    def total(self) -> int:
        return int(cast(Any, self.data).budget)

    @property
    def evaluation_period(self) -> int:
        return self.data.eval_every

    def on_env_step(self, count: int = 1) -> None:
        """Advances the environment clock, by the steps that all processes have made; the updates come after it."""
        for _ in range(count):
            self.env_steps += 1
            self.tell("on_env_step")

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if not hasattr(self, "reference"):
            self.reference = frozen_copy(self.agent.actor)

    def configure_callbacks(self) -> list[Callback]:
        callbacks = super().configure_callbacks()
        if self.follows:
            reference = self.reference_settings
            callbacks.append(ReferencePolicy(reference.mode, reference.start, reference.period))
        return callbacks

    def run_evaluation(self) -> Evaluation:
        result = super().run_evaluation()
        if self.env_steps == 0:
            # both ends of the hand-over from the same start states: π_on just now, and π_off
            offline = self.evaluate(self.agent.offline_actor) if self._has_moved() else result
            self.start_values = {"aligned": result.value, "offline": offline.value}
            self.scores |= {"aligned": result.score, "offline": offline.score}
            self.returns |= {"aligned": result.return_mean, "offline": offline.return_mean}
        return result

    def set_reference(self, actor: nn.Module, score: float) -> None:
        """π_ref becomes a copy of ``actor``, which was evaluated at ``score``."""
        hard_update(self.reference, actor)
        self.reference_score.fill_(score)

    def _has_moved(self) -> bool:
        pairs = zip(self.policy().parameters(), self.agent.offline_actor.parameters(), strict=True)
        return not all(torch.equal(a, b) for a, b in pairs)

    def explore(self, observation: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.float32]:
        """The action ``[A]`` to take at a normalised observation ``[S]``."""
        raise NotImplementedError(f"{type(self).__name__}.explore")


class OnlinePhase(ReferencedPhase):
    """What constrained fine-tuning by a penalty shares across algorithms: the multiplier and the threshold.

    Args:
        init_from, constraint, multiplier, threshold, reference: see the subclass.
        actor_grad_clip: largest norm of the actor's gradient; None for none, 0.25 in some fixed-interval runs (D15).
        options: as in :class:`o2o_lightning.phases.base.Phase`.
    """

    needs_critic: ClassVar[bool] = True

    log_multiplier: nn.Parameter
    threshold: Tensor

    def __init__(
        self,
        init_from: str | None,
        constraint: bool,
        multiplier: Multiplier,
        threshold: Threshold,
        reference: Reference,
        actor_grad_clip: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(init_from, constraint, reference, **options)
        self.actor_grad_clip = actor_grad_clip
        self.constraint, self.multiplier, self.threshold_settings = constraint, multiplier, threshold
        self.log_multiplier = nn.Parameter(torch.tensor(math.log(multiplier.start)))
        self._multiplier_moved = False  # since the environment was stepped
        self._new_steps = 1
        # 0-d tensor, not a number: a schedule must not trigger a recompilation.
        self.register_buffer("threshold", torch.tensor(threshold.start))

    def on_env_step(self, count: int = 1) -> None:
        super().on_env_step(count)
        self._multiplier_moved, self._new_steps = False, count

    def gradient_limits(self) -> dict[str, float]:
        return {} if self.actor_grad_clip is None else {"actor": self.actor_grad_clip}

    @property
    def warming_up(self) -> bool:
        """Whether actions are uniform: from scratch, until the first update (A7)."""
        return self.source is None and self.updates == 0

    def explore(self, observation: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.float32]:
        if self.warming_up:
            return generator.uniform(-1.0, 1.0, self.policy().spec.action_dim).astype(np.float32)
        return self.noisy_action(observation, generator)

    def noisy_action(self, observation: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.float32]:
        """The policy's exploring action ``[A]`` at a normalised observation ``[S]``."""
        raise NotImplementedError(f"{type(self).__name__}.noisy_action")

    @property
    def planned_updates(self) -> int:
        data = cast(Any, self.data)
        return int(max(data.budget - data.warmup_steps, 0) * data.utd)

    def multiplier_due(self, policy_update: bool) -> bool:
        """Whether λ moves in this update: at most once an environment step, whatever the update-to-data ratio."""
        if not self.constraint or self._multiplier_moved:
            return False
        every = self.multiplier.every
        self._multiplier_moved = policy_update if every is None else self.env_steps % every < self._new_steps
        return self._multiplier_moved

    def multiplier_loss(self, divergence: Tensor) -> Tensor:
        """The multiplier's own loss on the divergence of this batch, Eq. 49."""
        weights = (self.multiplier.satisfied_weight, self.multiplier.violated_weight)
        return multiplier_loss(self.log_multiplier, divergence, self.threshold, *weights)

    def configure_callbacks(self) -> list[Callback]:
        callbacks, settings = super().configure_callbacks(), self.threshold_settings
        if self.constraint:
            end = settings.end * self.reference_settings.threshold_scale
            callbacks.append(ThresholdSchedule(settings.start, end, settings.env_steps))
        return callbacks

    def status(self) -> list[str]:
        if not self.constraint:
            return []
        parts = [f"λ {float(self.log_multiplier.detach().exp()):.3f} τ {float(self.threshold):.4g}"]
        return [*parts, f"f {self.display['divergence']:.4g}"] if "divergence" in self.display else parts
