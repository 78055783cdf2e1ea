"""Value alignment: pull every overestimated Q below the value of the offline policy's own action, the anchor."""

import torch
from torch import Tensor

from o2o_lightning.objectives.bellman import critic_loss, least


def action_distance(action: Tensor, anchor: Tensor, limit: float) -> Tensor:
    r"""Distance :math:`\delta = \min(\|a - \dot a\|_2 / \sqrt{A},\ \sigma)` of Eq. 15.

    The printed ``max`` would move the anchor itself; prose and official code cap the distance (D7).

    Args: ``action``, ``anchor`` ``[B, A]``; ``limit`` σ, the policy noise of Eq. 6. Returns ``[B]``.
    """
    return (action - anchor).square().mean(-1).sqrt().clamp(max=limit)


def calibrated_value_td3(anchor_value: Tensor, distance: Tensor, curvature: float) -> Tensor:
    r"""Value that a perturbed action should have, Eqs. 43–44, never above the anchor's.

    :math:`\dot q / (1 + k\delta^2)` for :math:`\dot q \ge 0`, and :math:`\dot q\,(1 + k\delta^2)` below zero.

    Args: ``anchor_value`` q̇ ``[B]``; ``distance`` δ ``[B]``; ``curvature`` k, 1 on every task. Returns ``[B]``.
    """
    factor = 1.0 + curvature * distance.square()
    return torch.where(anchor_value >= 0, anchor_value / factor, anchor_value * factor)


def alignment_target_td3(calibrated: Tensor, q_old: Tensor) -> Tensor:
    r"""Target :math:`\min\{q_{cal},\ \bar Q_i(s, \tilde a)\}` of Eq. 16: values that are low enough stay (D29).

    Args: ``calibrated [B]``; ``q_old [E, B]`` each member's own frozen target critic. Returns ``[E, B]``.
    """
    return torch.minimum(calibrated, q_old)


def calibrated_value_sac(
    anchor_value: Tensor, anchor_log_prob: Tensor, log_prob: Tensor, alpha: Tensor, floor: float | None = None
) -> Tensor:
    r"""Value that an action should have next to the anchor's, Eq. 12.

    :math:`\dot q - \alpha\,(\log\pi_{off}(\dot a|s) - \log\pi_{off}(a|s))`: under the entropy-regularised optimum
    Q differs between two actions by α times the difference of their log-probabilities.

    Args: ``anchor_value`` q̇, ``anchor_log_prob``, ``log_prob`` (of the sampled action under π_off) ``[B]``; ``alpha``
    α, scalar; ``floor`` of ``log_prob``, −50 in the paper, absent in the official code's alignment (D13); a narrow
    π_off without it gives targets far below any return. Returns ``[B]``.
    """
    if floor is not None:
        log_prob = log_prob.clamp(min=floor)
    return anchor_value - alpha * (anchor_log_prob - log_prob)


def alignment_target_sac(calibrated: Tensor, q_old: Tensor) -> Tensor:
    r"""Target :math:`\min\{q_{cal},\ \min_j \bar Q_j(s, a)\}` of Eq. 13, one for both critics (D29).

    Args: ``calibrated [B]``; ``q_old [E, B]`` of the frozen target critics. Returns ``[B]``.
    """
    return torch.minimum(calibrated, least(q_old))


def alignment_loss(q_action: Tensor, target: Tensor, q_anchor: Tensor, anchor_value: Tensor) -> tuple[Tensor, Tensor]:
    r"""The two halves of Eqs. 13 and 16: :math:`L^{align}` at explored actions, :math:`L^{retain}` at the anchor.

    Args: ``q_action``, ``q_anchor`` ``[E, B]`` of the learning critics; ``target [B]`` or ``[E, B]``;
    ``anchor_value`` q̇ ``[B]`` from the frozen target critics. Returns two scalars, to be added.
    """
    return critic_loss(q_action, target), critic_loss(q_anchor, anchor_value)
