"""TD3: target-policy smoothing and the deterministic policy gradient; TD3+BC, the paper's offline source for O2TD3."""

from torch import Tensor


def smoothed_action(action: Tensor, noise: Tensor, std: float, clip: float) -> Tensor:
    r"""Perturbed action :math:`\mathrm{clip}(a + \mathrm{clip}(\sigma\epsilon, \pm c), \pm 1)`, below Eq. 6.

    Args: ``action [B, A]``; ``noise [B, A]`` standard normal; ``std`` σ and ``clip`` c. Returns ``[B, A]``.
    """
    return (action + (noise * std).clamp(-clip, clip)).clamp(-1.0, 1.0)


def policy_loss(q: Tensor) -> Tensor:
    r"""Deterministic policy gradient :math:`-\mathrm{mean}\,Q_1(s, \pi(s))`, Eq. 5. ``q [B]`` to a scalar."""
    return -q.mean()


def normalized_policy_loss(q: Tensor, scale: Tensor | None = None) -> Tensor:
    r""":math:`-\mathrm{mean}\,Q_1 / \mathrm{mean}|Q_1|`, the scale held constant. ``q [B]`` to a scalar.

    Args: ``scale`` :math:`\mathrm{mean}|Q_1|` where ``q`` is but a part of the batch, a scalar.

    The paper prints no normalisation (Eq. 45), but its start value λ = 1 and a threshold in action units only
    make sense with it, and the official code has it (D9).
    """
    return -q.mean() / (q.detach().abs().mean() if scale is None else scale)


def td3_bc_policy_loss(
    q: Tensor, action: Tensor, data_action: Tensor, q_weight: float, scale: Tensor | None = None
) -> Tensor:
    r"""Policy loss of TD3+BC (Fujimoto & Gu 2021, https://arxiv.org/abs/2106.06860, Eqs. 3 and 5).

    :math:`-\frac{\alpha}{\mathrm{mean}|Q_1|}\,\mathrm{mean}\,Q_1(s,\pi(s)) + \mathrm{mean}_{B,A}\,(\pi(s) - a)^2`

    Args: ``q [B]`` = Q_1(s, π(s)); ``action`` and ``data_action`` ``[B, A]``; ``q_weight`` α, 2.5 in the paper;
    ``scale`` mean|Q_1| where ``q`` is but a part of the batch.
    """
    return q_weight * normalized_policy_loss(q, scale) + (action - data_action).square().mean()
