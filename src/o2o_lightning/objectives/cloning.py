"""Cloning a policy into another family on a dataset's states (paper, appendix I)."""

from __future__ import annotations

from torch import Tensor


def cloning_loss(log_prob: Tensor, entropy: Tensor, temperature: Tensor) -> Tensor:
    r"""Loss of a stochastic student, Eq. 52.

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
