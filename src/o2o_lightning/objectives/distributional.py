"""Losses of values that are distributions over the bins of a known range.

``support`` is the lowest and the highest value, and how many bins there are, their centres from one to the other.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from o2o_lightning.nn.critics import Support


def two_hot(value: Tensor, support: Support) -> Tensor:
    """The distribution on the two bins beside a value whose mean is the value, clipped to the range: ``[…, bins]``."""
    low, high, bins = support
    place = (value.clamp(low, high) - low) * ((bins - 1) / (high - low))
    return (1.0 - (place.unsqueeze(-1) - torch.arange(bins, dtype=place.dtype, device=place.device)).abs()).clamp(min=0)


def two_hot_loss(logits: Tensor, target: Tensor, support: Support) -> Tensor:
    r"""Cross entropy :math:`\sum_i \mathrm{mean}_B\,\mathrm{CE}(\mathrm{twohot}(y), p_i)`.

    Args: ``logits [E, B, bins]``; ``target`` y ``[B]``. Returns a scalar.
    """
    return -(two_hot(target, support) * F.log_softmax(logits, -1)).sum(-1).mean(-1).sum()
