"""Judges: fitted values of a policy that tell it from another one, state by state, from data alone."""

import torch
from torch import Tensor

from o2o_lightning.objectives.diagnostics import fitted_weights

MASKED = 0.7  # of the episodes a judge is fitted to
DRAWS = 200  # of the bootstrap
LIMITS = (0.1, 0.9)  # quantiles


def judges(features: Tensor, following: Tensor, reward: Tensor, episode: Tensor, discount: float, count: int) -> Tensor:
    r"""Weights ``[K, F]`` of ``count`` fitted values of the reference policy, each of its own draw of the episodes.

    Rows within an episode depend on each other, so that whole episodes are drawn, always the same ones. For the other
    arguments ``[N, F], [N, F], [N]`` see :func:`~o2o_lightning.objectives.diagnostics.fitted_weights`; ``episode``
    ``[N]`` numbers each row's episode from 0.
    """
    stream = torch.Generator().manual_seed(0)
    fitted = []
    for _ in range(count):
        kept = torch.rand(int(episode.max()) + 1, generator=stream) < MASKED
        rows = kept[episode]
        rows = rows if rows.any() else torch.ones_like(rows)
        fitted.append(fitted_weights(features[rows], following[rows], reward[rows], discount))
    return torch.stack(fitted)


def differences(own: Tensor, reference: Tensor, weights: Tensor, episode: Tensor) -> Tensor:
    r"""Each judge's mean :math:`Q(s, \pi(s)) - Q(s, \pi_{ref}(s))` over each episode's states, ``[E, K]``.

    Args: features ``[N, F]`` of the states with the policy's own actions, and with the reference's; ``weights``
    ``[K, F]``; ``episode`` ``[N]``, numbers from 0 without a gap. With Q of π_ref, and states of π, their mean is
    :math:`(1 - \gamma)(J(\pi) - J(\pi_{ref}))` but for the states' discount: exactly 0 for equal policies.
    """
    gap = (own - reference) @ weights.T
    count = torch.zeros(int(episode.max()) + 1, dtype=gap.dtype).index_add_(0, episode, gap.new_ones(len(gap)))
    return gap.new_zeros(len(count), len(weights)).index_add_(0, episode, gap) / count[:, None]


def bounds(differences: Tensor) -> tuple[float, float]:
    """Lower and upper limit of the mean of ``differences`` ``[E, K]``: a bootstrap of episodes and judges, 80 %."""
    episodes, count = differences.shape
    stream = torch.Generator().manual_seed(0)
    rows = torch.randint(episodes, (DRAWS, episodes, 1), generator=stream)
    columns = torch.randint(count, (DRAWS, 1, count), generator=stream)
    means = differences[rows, columns].mean((1, 2))
    lower, upper = means.quantile(torch.tensor(LIMITS, dtype=means.dtype)).tolist()
    return lower, upper
