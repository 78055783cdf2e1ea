"""Constrained fine-tuning: divergence to the reference policy, its Lagrange multiplier, its threshold."""

import torch
from torch import Tensor


def squared_divergence(action: Tensor, reference_action: Tensor) -> Tensor:
    r"""O2TD3's :math:`f = (\pi(s) - \pi_{ref}(s))^2` per action dimension, ``[B, A] → [B, A]`` (Eq. 45)."""
    return (action - reference_action).square()


def kl_estimate(log_prob: Tensor, reference_log_prob: Tensor, floor: float = -50.0) -> Tensor:
    r"""O2SAC's one-sample estimate :math:`\log\pi(a|s) - \max\{\log\pi_{ref}(a|s),\ -50\}`, ``[B]`` (Eqs. 36, 38).

    Gradients reach π through its own log-probability and, where the floor does not bind, through the action in
    π_ref's (D31).

    Args: ``log_prob``, ``reference_log_prob`` ``[B]`` of the same sampled actions. Returns ``[B]``.
    """
    return log_prob - reference_log_prob.clamp(min=floor)


def multiplier_loss(
    log_multiplier: Tensor,
    divergence: Tensor,
    threshold: Tensor,
    satisfied_weight: float = 0.3,
    violated_weight: float = 0.7,
) -> Tensor:
    r"""Multiplier loss :math:`\lambda\,\mathrm{mean}(\omega(u)\,u)` with :math:`u = \tau_t - f`, Eq. 49.

    ω is the larger weight where the constraint is violated, so that λ does not fall abruptly; the printed
    formula swaps the two cases, its sentence and the official code do not (D6). λ = exp(ℓ) > 0.

    Args: ``log_multiplier`` ℓ, scalar; ``divergence`` f of any shape, taken as a constant; ``threshold`` τ_t,
    scalar. Returns a scalar whose gradient reaches ℓ alone.
    """
    slack = threshold - divergence.detach()
    weighted = torch.where(slack > 0, satisfied_weight * slack, violated_weight * slack)
    return log_multiplier.exp() * weighted.mean()


def threshold_at(env_steps: int, start: float, end: float, ramp_steps: int) -> float:
    r"""Threshold :math:`\tau_t`, linear from ``start`` to ``end`` over ``ramp_steps`` environment steps (H.3, H.4)."""
    if ramp_steps <= 0:
        return end
    return start + (end - start) * min(max(env_steps, 0) / ramp_steps, 1.0)
