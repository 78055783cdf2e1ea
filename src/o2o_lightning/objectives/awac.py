"""AWAC (Nair et al. 2020, https://arxiv.org/abs/2006.09359), as CORL has it."""

from __future__ import annotations

from torch import Tensor

from o2o_lightning.objectives.bellman import least


def sampled_advantage(q_data: Tensor, q_sampled: Tensor) -> Tensor:
    r"""Advantage of a data action over one of the policy's own.

    :math:`\min_i Q_i(s,a) - \min_i Q_i(s,\tilde a)`, ã ~ π(·|s): a one-sample estimate of their A^π (Eq. 12)

    Args: ``q_data`` and ``q_sampled`` ``[E, B]`` from the critics themselves, not their targets. Returns ``[B]``.
    """
    return least(q_data) - least(q_sampled)


def awac_weight(advantage: Tensor, temperature: float, cap: float) -> Tensor:
    r"""Weight :math:`\min\{e^{x/\lambda}, c\}` of a data action (their Eq. 13), ``[B] → [B]``, no gradient."""
    return (advantage.detach() / temperature).exp().clamp(max=cap)


def awac_policy_loss(weight: Tensor, log_prob: Tensor) -> Tensor:
    r"""Policy loss :math:`-\mathrm{mean}\,w\log\pi(a|s)` (their Eq. 13); both ``[B]``, ``a`` from the data."""
    return -(weight * log_prob).mean()
