"""CQL (Kumar et al. 2020, https://arxiv.org/abs/2006.04779) in CORL's variant, the paper's offline source for O2SAC.

Shape letters: ``E`` critics, ``N`` sampled actions a state, ``B`` batch.
"""

import math

import torch
from torch import Tensor

from o2o_lightning.objectives.bellman import least

LAGRANGE_LIMIT = 1e6


def uniform_log_density(action_dim: int) -> float:
    r"""Log-density :math:`-A\log 2` of the uniform distribution on :math:`[-1, 1]^A`."""
    return -action_dim * math.log(2.0)


def conservative_value(q: Tensor, log_density: Tensor | None, temperature: float = 1.0) -> Tensor:
    r"""Soft maximum :math:`G_i(s) = T\,\mathrm{logsumexp}_k\,(z_{ik}/T)` with :math:`z = Q_i(s, a_k) - \log\mu(a_k)`.

    Subtracting each action's log-density under the distribution that drew it is the importance sampling of
    their appendix F; None leaves the values as they are.

    Args: ``q [E, N, B]``; ``log_density [N, B]``, a constant; ``temperature`` T. Returns ``[E, B]``.
    """
    z = q if log_density is None else q - log_density.detach()
    return temperature * torch.logsumexp(z / temperature, 1)


def conservative_gap(value: Tensor, q_data: Tensor, lower: float | None = None, upper: float | None = None) -> Tensor:
    r"""How far each critic overrates other actions, :math:`\Delta_i = \mathrm{mean}_B\,\mathrm{clip}(G_i - Q_i(s,a))`.

    Args: ``value`` G and ``q_data`` Q_i(s, a) of the dataset's actions, ``[E, B]``; bounds of the clip, None for
    none (AntMaze clips at −200 from below). Returns ``[E]``.
    """
    gap = value - q_data
    if lower is not None or upper is not None:
        gap = gap.clamp(lower, upper)
    return gap.mean(-1)


def lagrange_weight(log_lagrange: Tensor) -> Tensor:
    r"""The trained weight :math:`\alpha' = \mathrm{clip}(e^{\ell'}, 0, 10^6)` of the gap, a scalar."""
    return log_lagrange.exp().clamp(0.0, LAGRANGE_LIMIT)


def lagrange_loss(log_lagrange: Tensor, gap: Tensor, target_gap: float, weight: float) -> Tensor:
    r"""Loss of the Lagrange multiplier, :math:`-\tfrac12\sum_i \alpha' w\,(\Delta_i - \mathrm{gap})`.

    Args: ``log_lagrange`` ℓ', scalar; ``gap`` Δ ``[E]``, a constant; ``weight`` w. Returns a scalar.
    """
    return -0.5 * (lagrange_weight(log_lagrange) * weight * (gap.detach() - target_gap)).sum()


def max_target_value(q: Tensor, log_prob: Tensor, alpha: Tensor | None = None) -> Tensor:
    r"""Max-target backup :math:`\max_k \min_j \bar Q_j(s', a'_k)` over N actions of the policy; N = 1 is the plain one.

    Args: ``q [E, N, B]``; ``log_prob [N, B]``; ``alpha``: subtract :math:`\alpha\log\pi` of the chosen action
    (entropy backup), None for none. Returns ``[B]``.
    """
    value, chosen = least(q).max(0)
    if alpha is None:
        return value
    return value - alpha * log_prob.gather(0, chosen[None]).squeeze(0)
