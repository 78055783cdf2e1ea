"""How well a critic and a policy agree: numbers to watch, not to descend."""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor

ONE_SIDED = 1.28  # the normal distribution's upper tenth
CROSSED = 40  # parts of a state-action pair whose products are features


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


def paired_gap(challenger: Sequence[float], incumbent: Sequence[float]) -> float:
    r"""How far the returns of two policies lie apart, start state by start state: :math:`\bar d / (s_d / \sqrt n)`.

    d are the differences, s_d is their standard deviation; infinite, or 0 for equal means, where nothing varies. Normal
    for many returns of policies that are equally good; start states that are easy or hard for both do not blur it.
    """
    gaps = [ours - theirs for ours, theirs in zip(challenger, incumbent, strict=True)]
    gap = fmean(gaps)
    error = math.sqrt(sum((x - gap) ** 2 for x in gaps) / max(len(gaps) - 1, 1) / len(gaps))
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


def support_distance(
    observation: Tensor, action: Tensor, near_observation: Tensor, near_action: Tensor, neighbours: int
) -> tuple[Tensor, Tensor]:
    r"""How far state-action pairs lie from those of a dataset.

    Args: pairs ``[B, S]``, ``[B, A]`` and the dataset's ``[N, S]``, ``[N, A]``; states in comparable units.
    Returns ``[B]`` each: the distance to the nearest state, :math:`\|s - s'\|/\sqrt S`, and, of the ``neighbours``
    nearest states, that of the nearest action, :math:`\|a - a'\|/\sqrt A`.
    """
    apart, rows = torch.cdist(observation, near_observation).topk(neighbours, largest=False)
    actions = (action.unsqueeze(1) - near_action[rows]).norm(dim=-1).amin(1)
    return apart[:, 0] / observation.shape[-1] ** 0.5, actions / action.shape[-1] ** 0.5


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's, of two samples ``[N]``; 0 where one of them does not vary."""
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / (a.norm() * b.norm()).clamp(min=1e-12))


def kept_share(after: float, before: float, worst: float) -> float:
    """What is left of what a policy has beyond the ``worst`` return: 1 for all of it, 0 for nothing.

    A policy that had nothing to lose keeps all.
    """
    return (after - worst) / (before - worst) if before > worst else 1.0


def quadratic_features(x: Tensor) -> Tensor:
    """``[N, D]`` to 1, x and its squares, and the products of its parts where there are at most :data:`CROSSED`."""
    left, right = (
        torch.triu_indices(x.shape[1], x.shape[1]) if x.shape[1] <= CROSSED else [torch.arange(x.shape[1])] * 2
    )
    return torch.cat((torch.ones(len(x), 1, dtype=x.dtype), x, x[:, left] * x[:, right]), 1)


def fitted_weights(features: Tensor, following: Tensor, reward: Tensor, discount: float) -> Tensor:
    r"""Fitted Q evaluation at its fixed point, of values that are linear in features (LSTD).

    :math:`w = (\Phi^T(\Phi - \gamma\Phi') + \epsilon N I)^{-1} \Phi^T r` with :math:`\epsilon` of 1e-4.

    Args: ``features`` Φ ``[N, F]`` of (s, a); ``following`` Φ' ``[N, F]`` of (s', π(s')), 0 where an episode has
    terminated; ``reward`` ``[N]``. Returns w ``[F]``: values are Φw.
    """
    within = features.T @ (features - discount * following) / len(features)
    ridge = 1e-4 * torch.eye(features.shape[1], dtype=features.dtype)
    weights: Tensor = torch.linalg.solve(within + ridge, features.T @ reward / len(features))
    return weights
