"""Several squashed Gaussians that act as one (Off2On, Lee et al. 2021, https://arxiv.org/abs/2107.00591)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from o2o_lightning.nn.actor import FloatArray, Policy, PolicySpec
from o2o_lightning.nn.squashed_gaussian import LOG_STD_MAX, LOG_STD_MIN, SquashedGaussian, SquashedGaussianActor


@dataclass(frozen=True)
class MixtureSpec(PolicySpec):
    """Of a mixture: the specifications of its members."""

    members: tuple[dict[str, Any], ...]


class Mixture(SquashedGaussianActor):
    r"""Before tanh a Gaussian of the members' mixture's own mean and variance.

    :math:`\bar\mu = \mathrm{mean}_i\,\mu_i` and :math:`\bar\sigma^2 = \mathrm{mean}_i\,\sigma_i^2 +
    \mathrm{var}_i\,\mu_i`, which is never negative, however large and alike the means are.
    """

    kind = "mixture"
    spec: MixtureSpec  # type: ignore[assignment]

    def __init__(self, members: Sequence[SquashedGaussianActor]) -> None:
        Policy.__init__(self)
        first = members[0].spec
        specs = tuple(member.spec.to_dict() for member in members)
        self.spec = MixtureSpec(self.kind, first.observation_dim, first.action_dim, specs)
        self.members = nn.ModuleList(members)

    def forward(self, observation: Tensor) -> SquashedGaussian:
        """The distribution of actions at ``[…, B, S]``."""
        parts = [member.distribution(observation) for member in self.members]  # type: ignore[operator]
        means = torch.stack([part.mean for part in parts])
        mean = means.mean(0)
        variance = torch.stack([part.log_std for part in parts]).mul(2).exp().mean(0) + (means - mean).square().mean(0)
        return SquashedGaussian(mean, (0.5 * variance.log()).clamp(LOG_STD_MIN, LOG_STD_MAX))

    distribution = forward  # typed, as a call is not

    def _numpy_moments(self, observation: FloatArray) -> tuple[FloatArray, FloatArray]:
        moments = zip(*(member._numpy_moments(observation) for member in self.members), strict=True)  # type: ignore[operator]
        means, log_stds = map(np.stack, moments)
        log_std = 0.5 * np.log(np.exp(2 * log_stds).mean(0) + means.var(0))
        return means.mean(0), np.clip(log_std, LOG_STD_MIN, LOG_STD_MAX)
