"""What every value-based method shares: the bootstrap target and the squared error to it."""

from functools import reduce

import torch
from torch import Tensor


def least(q: Tensor) -> Tensor:
    r"""The pessimistic value :math:`\min_i Q_i(s, a)` of an ensemble, ``[E, …] → […]``; E is small.

    Member by member: torch's reduction over a leading dimension of two takes several times as long.
    """
    return reduce(torch.minimum, q.unbind())


def td_target(reward: Tensor, terminated: Tensor, next_value: Tensor, discount: float) -> Tensor:
    r"""Bootstrap target :math:`y = r + \gamma (1 - d)\,V(s')`, Eqs. 3 and 6.

    Args: all ``[B]``; ``terminated`` is 1 only for a true termination, so a time-out keeps its bootstrap.
    Penalties that the method subtracts from the successor's value belong inside ``next_value``: a terminal
    transition then has none. Returns ``[B]``.
    """
    return reward + discount * (1.0 - terminated) * next_value


def steady_value(reward: float, ending: float, discount: float) -> float:
    r"""The value of a reward that stays as it is, :math:`r / (1 - \gamma (1 - e))`, where a share e of steps terminate.

    Of a dataset's means it is the constant that solves the Bellman equation on average over its transitions.
    """
    return reward / (1.0 - discount * (1.0 - ending))


def critic_loss(q: Tensor, target: Tensor) -> Tensor:
    r"""Squared Bellman error :math:`\sum_i \mathrm{mean}_B\,(Q_i(s,a) - y)^2`, Eqs. 3 and 6.

    Args: ``q [E, B]`` for an ensemble of E; ``target [B]`` shared, or ``[E, B]`` one a member. Returns a scalar.
    """
    return (q - target).square().mean(-1).sum()
