"""Imitation: cloning a policy into another family (appendix I), and sequence models, which the paper clones (§ 5.1).

Decision Transformer: Chen et al. 2021, https://arxiv.org/abs/2106.01345, with CORL's constants. Online Decision
Transformer: Zheng et al. 2022, https://arxiv.org/abs/2202.05607.

Windows of ``T`` steps are padded where an episode ends earlier; ``real`` ``[B, T]`` bool is false there.
"""

import torch
from torch import Tensor


def cloning_loss(log_prob: Tensor, entropy: Tensor, temperature: Tensor) -> Tensor:
    r"""Loss of a stochastic student on a dataset's states, Eq. 52.

    :math:`\mathrm{mean}\,[-\log\pi_\theta(a|s) - \lambda_H H(\pi_\theta(\cdot|s))]`, a ~ π_off(·|s)

    The entropy keeps σ from collapsing, which would make O2SAC's α decay at once and its values jump.

    Args: ``log_prob [B]`` of the teacher's actions; ``entropy [B]`` of the student; ``temperature`` λ_H, a constant
    here. Returns a scalar.
    """
    return -(log_prob + temperature * entropy).mean()


def entropy_temperature_loss(log_temperature: Tensor, entropy: Tensor, target_entropy: float) -> Tensor:
    r"""Loss of the temperature :math:`\log\lambda_H\,(\mathrm{mean}\,H - \bar H)`, with :math:`\bar H = -A` (A5).

    λ_H rises while the entropy is below its target and falls towards 0 above it, as in the Online Decision
    Transformer. Args: ``entropy [B]``, taken as a constant. Returns a scalar.
    """
    return log_temperature * (entropy.detach().mean() - target_entropy)


def imitation_loss(action: Tensor, teacher_action: Tensor) -> Tensor:
    r"""Loss of a deterministic student :math:`\mathrm{mean}_{B,A}\,(\pi_\theta(s) - a)^2`; both ``[B, A]``."""
    return (action - teacher_action).square().mean()


def sequence_imitation_loss(action: Tensor, data_action: Tensor, real: Tensor) -> Tensor:
    r"""Decision Transformer's loss :math:`\frac{1}{BTA} \sum_{b,t,i} m_{bt}\,(\pi_{bti} - a_{bti})^2`.

    The mean is over all entries, padding included, as in CORL. Args: actions ``[B, T, A]``. Returns a scalar.
    """
    return ((action - data_action).square() * real.unsqueeze(-1)).mean()


def real_mean(values: Tensor, real: Tensor) -> Tensor:
    """Mean of ``values`` ``[B, T]`` over the steps that are no padding."""
    return (values * real).sum() / real.sum()


def sequence_likelihood_loss(
    log_prob: Tensor, entropy: Tensor, temperature: Tensor, real: Tensor, counted: Tensor | None = None
) -> Tensor:
    r"""Online Decision Transformer's loss (its Eq. 5), :math:`-\mathrm{mean}[\log\pi(a|\cdot) + T\,H(\pi)]`.

    Args: ``log_prob`` of the data's actions, over ``real`` steps, and ``entropy``, over ``counted`` ones, the same by
    default, all in the released code (D88), ``[B, T]``; ``temperature`` T, a constant here. Returns a scalar.
    """
    return -real_mean(log_prob, real) - temperature * real_mean(entropy, real if counted is None else counted)


def sequence_temperature_loss(log_temperature: Tensor, entropy: Tensor, real: Tensor, target_entropy: float) -> Tensor:
    r"""Loss of the temperature :math:`T\,(\mathrm{mean}\,H - \bar H)`, with :math:`T = e^{\ell}` (its Eq. 8).

    Args: ``entropy [B, T]``, taken as a constant. Returns a scalar.
    """
    return log_temperature.exp() * (real_mean(entropy.detach(), real) - target_entropy)


def disagreement_loss(log_prob: Tensor, weight: float) -> Tensor:
    r"""Cloning by members that may differ: :math:`\sum_i \mathrm{mean}[-l_i - w(l_i - \max_j l_j)]`, l_i log π_i(a|s).

    A member reaches the maximum by its own density alone; the others' are constants in its loss (Uni-O4).

    Args: ``log_prob`` ``[M, B]``; ``weight`` w. Returns a scalar.
    """
    members = len(log_prob)
    own = torch.eye(members, dtype=torch.bool, device=log_prob.device)[..., None]
    others = log_prob.detach().expand(members, *log_prob.shape).masked_fill(own, -torch.inf).amax(1)
    ratio = log_prob - torch.maximum(log_prob, others)
    return -(log_prob + weight * ratio).mean(-1).sum()
