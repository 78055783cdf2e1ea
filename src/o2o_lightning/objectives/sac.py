"""SAC (Haarnoja et al. 2018, https://arxiv.org/abs/1812.05905): entropy-regularised actor and critics."""

from torch import Tensor

from o2o_lightning.objectives.bellman import least


def soft_value(q: Tensor, log_prob: Tensor, alpha: Tensor) -> Tensor:
    r"""One-sample soft value :math:`\min_j \bar Q_j(s, a) - \alpha \log\pi(a|s)`, the bracket of Eqs. 3 and 38.

    Args: ``q [E, B]`` at sampled actions, E = 1 or 2; ``log_prob [B]``; ``alpha`` α, scalar. Returns ``[B]``.
    """
    return least(q) - alpha * log_prob


def soft_policy_loss(q: Tensor, log_prob: Tensor, alpha: Tensor) -> Tensor:
    r"""Policy loss :math:`\mathrm{mean}\,[\alpha\log\pi(a|s) - \min_i Q_i(s, a)]`, Eq. 2 with its sign turned.

    Args: ``q [E, B]`` and ``log_prob [B]`` at reparameterised actions; ``alpha`` α, a constant. Returns a scalar.
    """
    return -soft_value(q, log_prob, alpha).mean()


def temperature_loss(log_alpha: Tensor, log_prob: Tensor, target_entropy: float) -> Tensor:
    r"""Temperature loss :math:`-\log\alpha\;\mathrm{mean}(\log\pi(a|s) + \bar H)`, Eq. 4 with :math:`\bar H = -A`.

    The printed sign would need :math:`\bar H = +A`, and the official code descends on log α (D28).

    Args: ``log_alpha`` scalar; ``log_prob [B]``, taken as a constant. Returns a scalar whose gradient reaches
    ``log_alpha`` alone.
    """
    return -log_alpha * (log_prob.detach().mean() + target_entropy)
