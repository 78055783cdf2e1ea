"""What the constraint follows: the swap rule of the reference policy, and the threshold's schedule."""

import math
from collections.abc import Callable
from typing import Any, Literal

import lightning as L

from o2o_lightning.callbacks.hooks import PhaseCallback
from o2o_lightning.envs.episodes import Evaluation
from o2o_lightning.objectives.constraint import threshold_at


class ReferencePolicy(PhaseCallback):
    """Keeps π_ref, the policy that constrained fine-tuning stays close to.

    Args:
        mode: ``best``: swap when an evaluation scores strictly above every earlier one; ``interval``: swap every
            ``period`` environment steps; ``frozen``: never; ``trials``, ``returns``, ``judged``: the phase's court, or
            gate, does it.
        start: ``best``: the better of π_off and π_on before the first step (D14), π_on where neither is evaluated
            then; ``aligned`` or ``offline``.
        period: environment steps, for ``interval``.
    """

    def __init__(
        self,
        mode: Literal["best", "trials", "returns", "judged", "interval", "frozen"] = "best",
        start: Literal["best", "aligned", "offline"] = "best",
        period: int = 1000,
    ) -> None:
        self.mode, self.start, self.period = mode, start, period

    def on_train_start(self, trainer: L.Trainer, phase: Any) -> None:
        if self.mode in ("returns", "judged"):  # it has begun as what it is
            return
        if phase.env_steps > 0 or math.isfinite(phase.method.reference_score):  # a resumed run has its reference
            return
        aligned, offline = (phase.start_values.get(name, -math.inf) for name in ("aligned", "offline"))
        if self.start == "offline" or (self.start == "best" and offline >= aligned > -math.inf):
            phase.set_reference(phase.method.offline_actor, offline)
        else:
            phase.set_reference(phase.policy(), aligned)

    def on_evaluation(self, trainer: L.Trainer, phase: Any, result: Evaluation) -> None:
        if self.mode == "best" and phase.env_steps > 0 and result.value > float(phase.method.reference_score):
            phase.set_reference(phase.policy(), result.value)

    def on_env_step(self, trainer: L.Trainer, phase: Any) -> None:
        # A period ends after its last step's updates, which is when the next step has just been made.
        if self.mode == "interval" and phase.env_steps > 1 and (phase.env_steps - 1) % self.period == 0:
            phase.set_reference(phase.policy(), float(phase.method.reference_score))


class ThresholdSchedule(PhaseCallback):
    """Sets the phase's threshold τ_t at every environment step, linear from ``start`` to ``end`` over ``env_steps``.

    Both are in the divergence's own unit: squared action units for O2TD3, nats for O2SAC. ``probe`` finds another end
    before the first step, and the start changes in proportion.
    """

    kept = ("start", "end")

    def __init__(
        self, start: float, end: float, env_steps: int = 100_000, probe: Callable[[], float] | None = None
    ) -> None:
        self.start, self.end, self.ramp_steps, self.probe = start, end, env_steps, probe

    def on_train_start(self, trainer: L.Trainer, phase: Any) -> None:
        if self.probe is not None and phase.env_steps == 0:
            found = self.probe()
            self.start, self.end = self.start * found / self.end, found
            phase.log_now({"threshold_end": found})
        self.on_env_step(trainer, phase)

    def on_env_step(self, trainer: L.Trainer, phase: Any) -> None:
        phase.set_threshold(threshold_at(phase.env_steps, self.start, self.end, self.ramp_steps))
