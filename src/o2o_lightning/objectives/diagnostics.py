"""How well a critic and a policy agree: numbers to watch, not to descend."""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from torch import Tensor

ONE_SIDED = 1.28  # the normal distribution's upper tenth


class Alignment(NamedTuple):
    """Agreement of a critic with its anchors, means over states.

    Attributes:
        share: states whose anchor has the highest Q among the anchor and its perturbations, in [0, 1].
        gap_max: Q(s, ȧ) minus the highest Q of the perturbed actions.
        gap_mean: Q(s, ȧ) minus their mean Q.
    """

    share: Tensor
    gap_max: Tensor
    gap_mean: Tensor


def anchor_agreement(q_anchor: Tensor, q_perturbed: Tensor) -> Alignment:
    """Compares the anchor's value ``[B]`` with those of N perturbed actions ``[N, B]``."""
    highest = q_perturbed.amax(0)
    return Alignment(
        share=(q_anchor > highest).float().mean(),
        gap_max=(q_anchor - highest).mean(),
        gap_mean=(q_anchor - q_perturbed.mean(0)).mean(),
    )


def relative_drift(value: Tensor, reference: Tensor) -> Tensor:
    r"""Mean absolute difference in units of the reference, :math:`E|v - v_0| / E|v_0|`; both ``[B]``, a scalar."""
    return (value - reference).abs().mean() / reference.abs().mean().clamp(min=1e-8)


def bellman_residual(q: Tensor, target: Tensor) -> Tensor:
    r"""Root mean square of :math:`y - Q(s, a)` in units of the mean :math:`|Q|`; both ``[B]``, a scalar."""
    return (target - q).square().mean().sqrt() / q.abs().mean().clamp(min=1e-8)


def standardized_gap(challenger: Sequence[float], incumbent: Sequence[float]) -> float:
    r"""How far the returns of two policies lie apart, :math:`(\bar c - \bar r) / (s\sqrt{1/n_c + 1/n_r})`.

    s is the pooled standard deviation; infinite, or 0 for equal means, where nothing varies. Normal for many returns
    of equal policies, so that it exceeds :data:`ONE_SIDED` in a tenth of independent comparisons.
    """
    gap, degrees = fmean(challenger) - fmean(incumbent), len(challenger) + len(incumbent) - 2
    squares = sum((x - fmean(returns)) ** 2 for returns in (challenger, incumbent) for x in returns)
    error = math.sqrt(squares / max(degrees, 1) * (1 / len(challenger) + 1 / len(incumbent)))
    return gap / error if error > 0.0 else math.copysign(math.inf, gap) if gap else 0.0


def relative_change(curve: Sequence[float], window: int, floor: float) -> float:
    """How far the mean of the last ``window`` values lies from that of the ``window`` before, in units of the former.

    Infinite for a curve shorter than both windows. ``floor`` is the least unit: a ratio near zero has settled when it
    moves little, although that little may be half of it.
    """
    if len(curve) < 2 * window:
        return math.inf
    recent = sum(curve[-window:]) / window
    before = sum(curve[-2 * window : -window]) / window
    return abs(recent - before) / max(abs(recent), floor)
