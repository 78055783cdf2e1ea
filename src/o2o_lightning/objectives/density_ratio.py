"""Off2On's balanced replay: how much likelier a transition is online than in the dataset, and its priority."""

from torch import Tensor

SMALL = 1e-10  # keeps the logarithms finite, as in the released code
PRIORITIES = (1e-3, 1e3)


def jensen_shannon_loss(offline: Tensor, online: Tensor) -> Tensor:
    r"""Bound whose optimum is the ratio :math:`w^*(s, a) = p_{on}(s, a) / p_{off}(s, a)`.

    :math:`-\mathrm{mean}\log\frac{2}{w_{off} + 1} - \mathrm{mean}\log\frac{2 w_{on}}{w_{on} + 1}`, Eq. 3 of
    https://arxiv.org/abs/2107.00591: 0 where w is 1 everywhere.

    Args: w ≥ 0 ``[B]`` of dataset rows and of online rows. Returns a scalar.
    """
    return -(2.0 / (offline + 1.0) + SMALL).log().mean() - (2.0 * online / (online + 1.0) + SMALL).log().mean()


def balanced_priority(ratio: Tensor, offline_mean: Tensor, temperature: float) -> Tensor:
    r"""Priority :math:`\mathrm{clip}(w^{1/T} / \mathrm{mean}_{off}\,w^{1/T})` ``[B]`` of rows of ratio w ``[B]``.

    ``offline_mean`` is the mean of :func:`tempered` ratios over *dataset* rows, whatever rows are weighed.
    """
    return (tempered(ratio, temperature) / (offline_mean + SMALL)).clamp(*PRIORITIES)


def tempered(ratio: Tensor, temperature: float) -> Tensor:
    """:math:`w^{1/T}`."""
    return ratio.pow(1.0 / temperature)
