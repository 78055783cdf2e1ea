"""Typed settings of the constrained fine-tuning, as they appear on the command line (``--model.threshold.end``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from o2o_lightning.errors import UserError, at_least


@dataclass
class Multiplier:
    """The Lagrange multiplier λ = exp(ℓ).

    Attributes:
        start: λ at the beginning.
        lr: Adam's rate for ℓ; 5e-5 moves λ by at most a factor e^±2.5 in 100k updates at every second one.
        every: environment steps between two multiplier updates; by default it moves with the first policy update of an
            environment step, which is every step for O2SAC and every second for O2TD3 (D33).
        satisfied_weight, violated_weight: ω of Eq. 49 where the constraint holds, and where it does not.
    """

    start: float = 1.0
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
        if self.every is not None:
            at_least("--model.multiplier.every", self.every, 1)


@dataclass
class Threshold:
    """The threshold τ_t, linear in environment steps (H.3, H.4).

    Attributes:
        start: τ at the first environment step.
        end: τ from ``env_steps`` on.
        env_steps: length of the ramp.
    """

    start: float = 0.0025
    end: float = 0.04
    env_steps: int = 100_000


@dataclass
class Reference:
    """When the reference policy π_ref becomes a copy of the current one.

    Attributes:
        mode: ``best``: at each evaluation whose score is the highest so far; ``interval``: every ``period``
            environment steps; ``frozen``: never (ablation).
        start: ``best``: the better of π_off and π_on (D14); ``aligned``: π_on; ``offline``: π_off.
        period: environment steps between two copies in mode ``interval``.
        threshold_scale: factor on the threshold's end; the official code quarters it in mode ``interval`` (D15).
    """

    mode: Literal["best", "interval", "frozen"] = "best"
    start: Literal["best", "aligned", "offline"] = "best"
    period: int = 1000
    threshold_scale: float = 1.0

    def __post_init__(self) -> None:
        at_least("--model.reference.period", self.period, 1)
        at_least("--model.reference.threshold_scale", self.threshold_scale, 0)


@dataclass
class Auxiliary:
    """O2PPO's auxiliary advantage.

    Attributes:
        scale: α; its largest value is half of it, in deviations of the rollout's own advantage.
        env_steps: environment steps over which its weight β falls linearly from 1 to 0.
        joint: floor the sum over action dimensions, as the official code, instead of each dimension (D19).
        pairwise: each sample's advantage with every sample's auxiliary term, as the official code (D18).
    """

    scale: float = 2.0
    env_steps: int = 250_000
    joint: bool = False
    pairwise: bool = False


@dataclass
class Convergence:
    """When re-evaluation and alignment count as settled.

    Attributes:
        every: gradient updates between two measurements.
        window: measurements that are averaged; their mean is compared with that of as many before.
        tolerance: largest relative change of every measured curve from one window to the next that counts as none.
        patience: measurements without a change, one after the other, that make a plateau.
        least: gradient updates before which no plateau counts.
        most: gradient updates after which a phase that stops when it has settled ends anyway; a fifth of the paper's.
        held_out: share of the episodes that is measured on and, with ``stop: converged``, not learned from.
    """

    every: int = 1000
    window: int = 5
    tolerance: float = 0.005
    patience: int = 3
    least: int = 10_000
    most: int = 100_000
    held_out: float = 0.05

    def __post_init__(self) -> None:
        limits = {"every": 1, "window": 1, "patience": 1, "least": 0, "most": 1, "tolerance": 0.0}
        for name, least in limits.items():
            at_least(f"--model.convergence.{name}", getattr(self, name), least)
        if not 0.0 < self.held_out < 1.0:
            raise UserError(f"--model.convergence.held_out {self.held_out:g}: a share between 0 and 1 is needed.")
