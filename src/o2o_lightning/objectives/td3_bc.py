"""TD3+BC (Fujimoto & Gu 2021, https://arxiv.org/abs/2106.06860), the paper's offline source for O2TD3."""

from __future__ import annotations

from torch import Tensor

from o2o_lightning.objectives.td3 import normalized_policy_loss


def td3_bc_policy_loss(
    q: Tensor, action: Tensor, data_action: Tensor, q_weight: float, scale: Tensor | None = None
) -> Tensor:
    r"""TD3+BC's policy loss (their Eqs. 3 and 5).

    :math:`-\frac{\alpha}{\mathrm{mean}|Q_1|}\,\mathrm{mean}\,Q_1(s,\pi(s)) + \mathrm{mean}_{B,A}\,(\pi(s) - a)^2`

    Args: ``q [B]`` = Q_1(s, π(s)); ``action`` and ``data_action`` ``[B, A]``; ``q_weight`` α, 2.5 in the paper;
    ``scale`` mean|Q_1| where ``q`` is but a part of the batch.
    """
    return q_weight * normalized_policy_loss(q, scale) + (action - data_action).square().mean()
