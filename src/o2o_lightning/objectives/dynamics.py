"""What a learned environment is fitted by."""

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss


def dynamics_loss(found: Tensor, logit: Tensor, successor: Tensor, terminated: Tensor) -> Tensor:
    r"""The sum over networks of :math:`\mathrm{mean}\,(\hat s' - s')^2` and the cross-entropy of the ends.

    Args: ``found`` ŝ′ ``[K, B, S]`` and ``logit [K, B]`` by K networks; ``successor [B, S]`` and ``terminated [B]``.
    Returns a scalar.
    """
    end = terminated.to(logit).expand_as(logit)
    difference = mse_loss(found, successor.expand_as(found))
    return len(logit) * (difference + binary_cross_entropy_with_logits(logit, end))
