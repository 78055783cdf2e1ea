"""Better actions than a policy's own, by a critic alone (PA-RL, Mark et al. 2024, https://arxiv.org/abs/2412.06685).

Shape letters: ``N`` candidates a state, ``K`` of them kept.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import grad

Value = Callable[[Tensor], Tensor]  # actions [K, B, A] to their values [K, B]


def most_valued(actions: Tensor, values: Tensor, count: int) -> Tensor:
    """The ``count`` best of each state's candidates: ``[N, B, A], [N, B] → [count, B, A]``, the best first."""
    chosen = values.topk(count, 0).indices
    return actions.gather(0, chosen.unsqueeze(-1).expand(*chosen.shape, actions.shape[-1]))


def ascended(value: Value, actions: Tensor, steps: int, rate: float) -> tuple[Tensor, Tensor]:
    r"""Gradient ascent on the action, :math:`a \leftarrow \mathrm{clip}(a + \eta \nabla_a Q(s, a))`, in ``[-1, 1]^A``.

    Of all iterates, the first one included, the best is returned: no action is worse than where it began.

    Args: ``actions [K, B, A]``; ``value`` of such, row by row; ``rate`` η. Returns actions and values ``[K, B]``.
    """

    def summed(at: Tensor) -> tuple[Tensor, Tensor]:
        values = value(at)
        return values.sum(), values

    best, best_value = actions, value(actions)
    for _ in range(steps):
        uphill, _ = grad(summed, has_aux=True)(actions)
        actions = (actions + rate * uphill).clamp(-1.0, 1.0)
        reached = value(actions)
        best = torch.where((reached > best_value).unsqueeze(-1), actions, best)
        best_value = torch.maximum(best_value, reached)
    return best, best_value


def best_actions(value: Value, actions: Tensor, kept: int, steps: int, rate: float) -> tuple[Tensor, Tensor]:
    """The ``kept`` most valued of ``actions`` ``[N, B, A]`` after their ascent, the best first: ``[kept, B, A]``.

    The values ``[kept, B]`` are those that they have reached.
    """
    reached, values = ascended(value, most_valued(actions, value(actions), kept), steps, rate)
    return most_valued(reached, values, kept), values.sort(0, descending=True).values
