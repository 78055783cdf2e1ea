"""Advantage-weighted regression: IQL, the paper's offline source for O2PPO, and AWAC, as CORL has it.

IQL: Kostrikov et al. 2021, https://arxiv.org/abs/2110.06169. AWAC: Nair et al. 2020, https://arxiv.org/abs/2006.09359.
"""

import torch
from torch import Tensor

from o2o_lightning.objectives.bellman import critic_loss, least


def expectile_loss(difference: Tensor, expectile: float) -> Tensor:
    r"""Asymmetric square :math:`\mathrm{mean}\,|\kappa - 1(x<0)|\,x^2` (IQL's Eq. 5).

    Args: ``difference`` x = min_j Q̄_j(s,a) − V(s), ``[B]``; ``expectile`` κ. Returns a scalar.
    """
    square = difference.square()
    return torch.where(difference < 0, (1.0 - expectile) * square, expectile * square).mean()


def iql_critic_loss(q: Tensor, target: Tensor) -> Tensor:
    r"""Critic loss :math:`\frac12 \sum_i \mathrm{mean}\,(Q_i(s,a) - y)^2` (IQL's Eq. 6).

    Args: ``q [2, B]``; ``target [B]`` = r + γ(1−d)V(s'), V taken before its own step. Returns a scalar.
    """
    return 0.5 * critic_loss(q, target)


def advantage_weight(advantage: Tensor, inverse_temperature: float, cap: float) -> Tensor:
    r"""Weight :math:`\min\{e^{\beta x}, c\}` of a data action (IQL's Eq. 7), ``[B] → [B]``, no gradient."""
    return (inverse_temperature * advantage.detach()).exp().clamp(max=cap)


def weighted_imitation_loss(weight: Tensor, misfit: Tensor) -> Tensor:
    r"""Policy loss :math:`\mathrm{mean}\,w\,m` (IQL's Eq. 7).

    Args: ``weight`` w ``[B]``; ``misfit`` m ``[B]``: −log π(a|s), or the squared distance summed over action
    dimensions where the policy is deterministic. Returns a scalar.
    """
    return (weight * misfit).mean()


def sampled_advantage(q_data: Tensor, q_sampled: Tensor) -> Tensor:
    r"""Advantage of a data action over one of the policy's own.

    :math:`\min_i Q_i(s,a) - \min_i Q_i(s,\tilde a)`, ã ~ π(·|s): a one-sample estimate of AWAC's A^π (Eq. 12)

    Args: ``q_data`` and ``q_sampled`` ``[E, B]`` from the critics themselves, not their targets. Returns ``[B]``.
    """
    return least(q_data) - least(q_sampled)


def awac_weight(advantage: Tensor, temperature: float, cap: float) -> Tensor:
    r"""Weight :math:`\min\{e^{x/\lambda}, c\}` of a data action (AWAC's Eq. 13), ``[B] → [B]``, no gradient."""
    return (advantage.detach() / temperature).exp().clamp(max=cap)


def awac_policy_loss(weight: Tensor, log_prob: Tensor) -> Tensor:
    r"""Policy loss :math:`-\mathrm{mean}\,w\log\pi(a|s)` (AWAC's Eq. 13); both ``[B]``, ``a`` from the data."""
    return -(weight * log_prob).mean()
