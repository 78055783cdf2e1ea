"""What constrained fine-tuning is told beside its reference policy: the multiplier, and the threshold."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from o2o_lightning.errors import UserError, at_least
from o2o_lightning.methods.method import Batch, Loss, Moment, Noise, Source, Task
from o2o_lightning.methods.o2.reference import Referenced
from o2o_lightning.objectives.constraint import bounded_penalty, controlled_multiplier, multiplier_loss


@dataclass(frozen=True)
class Multiplier:
    """The Lagrange multiplier λ = exp(ℓ).

    Attributes:
        start: λ at the beginning.
        lr: Adam's rate for ℓ; 5e-5 moves λ by at most a factor e^±2.5 in 100k updates at every second one.
        every: environment steps between two multiplier updates; by default it moves with the first policy update of an
            environment step, which is every step for O2SAC and every second for O2TD3 (D33).
        satisfied_weight, violated_weight: ω of Eq. 49 where the constraint holds, and where it does not.
        rule: ``adam``: the paper's, Adam on the loss of Eq. 49; ``pi``: proportional and integral in the relative
            violation f/τ − 1, with gains ``proportional`` and ``integral``, an update each.
        least, cap: limits of λ, for ``pi`` and where trials ease it. O2SAC's one-sample KL is noise, and a large λ
            makes steps of it.
    """

    start: float = 1.0
    rule: Literal["adam", "pi"] = "adam"
    integral: float = 0.02
    proportional: float = 0.5
    least: float = 1e-3
    cap: float = 100.0
    lr: float = 5e-5
    every: int | None = None
    satisfied_weight: float = 0.3
    violated_weight: float = 0.7

    def __post_init__(self) -> None:
        if not self.start > 0:
            raise UserError(
                f"--model.multiplier.start {self.start:g}: λ must be above 0. For λ ≡ 0 pass --model.constraint false."
            )
        at_least("--model.multiplier.lr", self.lr, 0)
        at_least("--model.multiplier.least", self.least, 1e-12)
        at_least("--model.multiplier.cap", self.cap, self.least)
        if self.every is not None:
            at_least("--model.multiplier.every", self.every, 1)


@dataclass(frozen=True)
class Threshold:
    """The threshold τ_t, linear in environment steps (H.3, H.4).

    Attributes:
        start: τ at the first environment step.
        end: τ from ``env_steps`` on.
        env_steps: length of the ramp.
        measured: replaces ``end`` by the largest divergence, up to it, to which the critic can push π_off before its
            episodes say that it is worse, and ``start`` in proportion.
        episodes: of each policy that is judged for that, one for each of up to seven divergences.
    """

    start: float = 0.0025
    end: float = 0.04
    env_steps: int = 100_000
    measured: bool = False
    episodes: int = 20

    def __post_init__(self) -> None:
        at_least("--model.threshold.episodes", self.episodes, 2)
        if self.measured:
            at_least("--model.threshold.end", self.end, 1e-12)


class Constrained(Referenced):
    """Fine-tuning with a penalty λ·(f − τ_t) on the divergence f from π_ref, Eqs. 36–39 and 45–49.

    Args:
        constraint: False sets λ ≡ 0 and drops the reference policy.
        multiplier, threshold: see :class:`Multiplier` and :class:`Threshold`.
        actor_grad_clip: largest norm of the actor's gradient; None for none, 0.25 in some fixed-interval runs (D15).
        penalty_limit: most that λ·f takes from a successor's value in the critics' target, in units of the batch's mean
            absolute value; None for no limit, 0 for no penalty.
        policy_after: environment steps before the policy and λ move; until then, the critics alone learn.
        hand_on: which policy goes online with the critics that are given: ``aligned``, π_on, which the alignment has
            let climb its critic all along; ``offline``, π_off; ``better``, π_on where ``judge_episodes`` of both tell
            it from π_off, else π_off.
        judge_episodes: of each policy, for ``better``; from other start states than the evaluations'.
        actor_moments: Adam moments of the policy: ``carried`` from the alignment (D47), whose loss is another;
            ``fresh``; ``rescaled``, as if the alignment's loss had been of this phase's size.
    """

    needs_critic: ClassVar[bool] = True
    constraint: bool = True
    multiplier: Multiplier = Multiplier()
    threshold: Threshold = Threshold()
    actor_grad_clip: float | None = None
    penalty_limit: float | None = None
    policy_after: int = 0
    hand_on: Literal["aligned", "offline", "better"] = "aligned"
    judge_episodes: int = 30
    actor_moments: Literal["carried", "fresh", "rescaled"] = "carried"

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("--model.judge_episodes", self.judge_episodes, 2)
        at_least("--model.policy_after", self.policy_after, 0)
        if self.threshold.measured:
            at_least("--model.reference.threshold_scale", self.reference.threshold_scale, 1e-12)
        if self.penalty_limit is not None:
            at_least("--model.penalty_limit", self.penalty_limit, 0)

    def build(self, task: Task, source: Source | None = None) -> None:
        super().build(task, source)
        if self.hand_on == "offline":
            self.become(self.offline_actor)
        self.take_reference()

    def moment_scales(self, sampled: Callable[[], Batch]) -> dict[str, float]:
        if self.actor_moments == "rescaled":
            return {"actor": self.loss_scale(sampled())}
        return {"actor": 0.0} if self.actor_moments == "fresh" else {}

    def climb(self, batch: Batch, noise: Noise) -> Loss:
        """The loss by which the policy climbs its critic; its divergence from π_ref is among the metrics."""
        raise NotImplementedError(f"{type(self).__name__}.climb")

    def loss_scale(self, batch: Batch) -> float:
        """How many times as large as in the alignment the policy's loss is."""
        return 1.0

    @property
    def follows(self) -> bool:
        return self.constraint

    def take_reference(self) -> None:
        super().take_reference()
        self.log_multiplier = nn.Parameter(torch.tensor(math.log(self.multiplier.start)))
        if self.multiplier.rule == "pi":
            self.register_buffer("integral", self.log_multiplier.detach().clone())
        # 0-d tensor, not a number: a schedule must not trigger a recompilation
        self.register_buffer("threshold_now", torch.tensor(self.threshold.start))

    def after_trial(self, lost: bool) -> None:
        super().after_trial(lost)
        step, rule = math.log(self.trials.ease) * (1.0 if lost else -1.0), self.multiplier
        with torch.no_grad():
            for name in ("log_multiplier", "integral") if rule.rule == "pi" else ("log_multiplier",):
                getattr(self, name).add_(step).clamp_(math.log(rule.least), math.log(rule.cap))

    def gradient_limits(self) -> dict[str, float]:
        return {} if self.actor_grad_clip is None else {"actor": self.actor_grad_clip}

    def multiplier_due(self, moment: Moment, policy_update: bool, policy_delay: int = 1) -> bool:
        """Whether λ moves in this update: at most once an environment step, whatever the update-to-data ratio."""
        if not self.constraint or moment.env_steps < self.policy_after:
            return False
        if self.multiplier.every is None:  # the first policy update since the environment was stepped
            return policy_update and moment.place < policy_delay
        return moment.place == 0 and moment.env_steps % self.multiplier.every < moment.new_steps

    def rates(self, moment: Moment) -> dict[str, float]:
        # the policy's moments are of this phase's loss when it begins to move
        waits = self.policy_after > 0 and moment.env_steps < self.policy_after
        return {"actor": 0.0 if waits else self.actor_lr} if self.policy_after else {}

    def with_multiplier(self, loss: Loss, divergence: Tensor) -> Loss:
        """``loss`` and what moves the multiplier by the divergence of this batch: a loss, Eq. 49, or its next value."""
        rule = self.multiplier
        weights = (rule.satisfied_weight, rule.violated_weight)
        if rule.rule == "adam":
            own = multiplier_loss(self.log_multiplier, divergence, self.threshold_now, *weights)
            return loss._replace(value=loss.value + own)
        divergence = self.ranks.mean(divergence.detach().mean())
        integral, log_multiplier = controlled_multiplier(
            self.integral, divergence, self.threshold_now, (rule.integral, rule.proportional), weights,
            (rule.least, rule.cap),
        )  # fmt: skip
        state = {"integral": integral, "log_multiplier": log_multiplier}
        return loss._replace(value=loss.value + 0.0 * self.log_multiplier, state=state)

    def less_penalty(self, next_value: Tensor, divergence: Tensor) -> Tensor:
        """What a successor is worth ``[B]`` behind the penalty λ·f for ``divergence`` f, of it or of the batch."""
        unit = self.ranks.mean(next_value.abs().mean()) if self.penalty_limit is not None else next_value
        return next_value - bounded_penalty(self.log_multiplier.detach().exp() * divergence, unit, self.penalty_limit)
