"""What an ensemble of critics says of an action, beyond its least value.

Shape letters: ``N`` critics, ``M`` of them drawn.
"""

import torch
from torch import Tensor

from o2o_lightning.objectives.bellman import least


def drawn_members(noise: Tensor, size: int, replace: bool, count: int) -> Tensor:
    """Numbers ``[M]`` of ``size`` members of ``count``, one draw for a whole batch.

    Args:
        noise: uniform in [−1, 1): ``[N]``, of which the lowest win, so that no two are equal; ``[M]``, a number each,
            with ``replace``.
    """
    if replace:
        return ((noise + 1.0) * (0.5 * count)).long().clamp(max=count - 1)
    return noise.argsort()[:size]


def all_pairs_least(q: Tensor) -> Tensor:
    r"""The mean of :math:`\min(Q_i, Q_j)` over all pairs of members, ``q [N, …] → […]``, N at least two.

    Of the sorted values, :math:`\sum_k q_{(k)}\, 2(N-k) / (N(N-1))`: ENOTO's target (Zhao et al. 2023,
    https://arxiv.org/abs/2306.06871).
    """
    count = len(q)
    behind = torch.arange(count - 1, -1, -1, dtype=q.dtype, device=q.device)
    found: Tensor = torch.tensordot(behind * (2.0 / (count * (count - 1))), q.sort(0).values, 1)
    return found


def doubt_weight(deviation: Tensor, temperature: float) -> Tensor:
    r"""SUNRISE's weight :math:`\sigma(-T s) + \tfrac12` of a target whose ``deviation`` among members is s, ``[B]``.

    From 1 where they agree down to a half (Lee et al. 2021, https://arxiv.org/abs/2007.04938, Eq. 4).
    """
    return torch.sigmoid(-temperature * deviation) + 0.5


def members_least(q: Tensor, members: int) -> Tensor:
    r"""Each member's own pessimism, :math:`\min_j Q_{i,j}`, of ``members`` equal groups: ``q [N, …] → [members, …]``.

    The mean of it over pairs is what Off2On's policy climbs (Lee et al. 2021, https://arxiv.org/abs/2107.00591).
    """
    return least(q.reshape(members, -1, *q.shape[1:]).transpose(0, 1))


def subset_least(q: Tensor, members: Tensor) -> Tensor:
    r"""Pessimism of a random subset, :math:`\min_{i \in \mathcal M} Q_i`: ``q [N, …]``, ``members [M]`` → ``[…]``.

    REDQ (Chen et al. 2021, https://arxiv.org/abs/2101.05982, Eq. 1). Without replacement its mean is
    :math:`\sum_k q_{(k)} \binom{N-k}{M-1} / \binom N M` of the sorted values.
    """
    return least(q[members])
