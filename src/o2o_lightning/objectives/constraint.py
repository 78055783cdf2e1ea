"""Constrained fine-tuning: divergence to the reference policy, its Lagrange multiplier, its threshold."""

import math

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


def controlled_multiplier(
    integral: Tensor, divergence: Tensor, threshold: Tensor, gains: tuple[float, float], weights: tuple[float, float],
    limits: tuple[float, float],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    r"""A proportional-integral rule of log λ on the relative violation :math:`e = \mathrm{mean} f / \tau - 1`.

    :math:`\ell \leftarrow \mathrm{clip}(\ell + k_i\,\omega e)` and :math:`\log\lambda = \mathrm{clip}(\ell + k_p\,e)`,
    with e in [−1, 3] and ω as in Eq. 49. The integral never leaves the limits of λ, so that it has nothing to unwind.

    Args: ``integral`` ℓ, scalar; ``divergence`` f of any shape; ``threshold`` τ, scalar; ``gains`` k_i, k_p;
    ``weights`` ω where the constraint is satisfied, and where not; ``limits`` of λ. Returns the next ℓ and log λ.
    """
    low, high = map(math.log, limits)
    excess = (divergence.detach().mean() / threshold.clamp(min=1e-12) - 1.0).clamp(-1.0, 3.0)
    weight = torch.where(excess > 0, weights[1], weights[0])
    integral = (integral.detach() + gains[0] * weight * excess).clamp(low, high)
    return integral, (integral + gains[1] * excess).clamp(low, high)


def bounded_penalty(penalty: Tensor, unit: Tensor, limit: float | None) -> Tensor:
    """``penalty`` of any shape within ± ``limit`` times ``unit``, a scalar; as it is where the limit is None."""
    return penalty if limit is None else torch.minimum(torch.maximum(penalty, -limit * unit), limit * unit)


def threshold_at(env_steps: int, start: float, end: float, ramp_steps: int) -> float:
    r"""Threshold :math:`\tau_t`, linear from ``start`` to ``end`` over ``ramp_steps`` environment steps (H.3, H.4)."""
    if ramp_steps <= 0:
        return end
    return start + (end - start) * min(max(env_steps, 0) / ramp_steps, 1.0)
