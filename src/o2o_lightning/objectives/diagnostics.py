"""How well a critic and a policy agree: numbers to watch, not to descend."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


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
