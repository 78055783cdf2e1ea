"""SAC's policy: a Gaussian squashed by tanh, with exact log-probabilities."""

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from o2o_lightning.nn.actor import Density, FloatArray, StochasticActor

LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0
ACTION_LIMIT = 1.0 - 1e-4  # given actions are clipped to it: atanh(±1) is infinite


class SquashedGaussian(NamedTuple):
    """The distribution of ``tanh(u)``, ``u ~ N(mean, exp(log_std)²)``, independent in each of A dimensions.

    A plain pair of tensors ``[…, B, A]``, so that one pass of the actor's trunk serves any number of draws.
    """

    mean: Tensor
    log_std: Tensor

    def sample(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Reparameterised actions and their log-probabilities: noise ``[…, B, A] → [..., B, A], [..., B]``.

        The value before tanh is kept for the log-probability, which stays exact where tanh rounds to one.
        """
        pre_tanh = self.mean + self.log_std.exp() * noise
        return torch.tanh(pre_tanh), self._log_prob(pre_tanh, noise)

    def log_prob(self, action: Tensor, limit: float = ACTION_LIMIT) -> Tensor:
        """Log-probability of given actions ``[…, B, A] → […, B]``, clipped to ±``limit`` first."""
        pre_tanh = torch.atanh(action.clamp(-limit, limit))
        return self._log_prob(pre_tanh, (pre_tanh - self.mean) * (-self.log_std).exp())

    def mode(self) -> Tensor:
        """The deterministic action ``[…, B, A]``: tanh of the mean, which is not the density's own mode."""
        return torch.tanh(self.mean)

    def anchor(self) -> Tensor:
        """:meth:`mode`, clipped as the density of a given action is: O2SAC's alignment needs both of one action."""
        return self.mode().clamp(-ACTION_LIMIT, ACTION_LIMIT)

    def _log_prob(self, pre_tanh: Tensor, standardized: Tensor) -> Tensor:
        gaussian = -0.5 * standardized.square() - self.log_std - 0.5 * math.log(2 * math.pi)
        # log(1 − tanh²u) in the form that neither overflows nor cancels
        return (gaussian - 2.0 * (math.log(2.0) - pre_tanh - F.softplus(-2.0 * pre_tanh))).sum(-1)


class SquashedGaussianActor(StochasticActor):
    """``S → hidden → 2A``, ReLU; the second half is a raw log-std, scaled and shifted by two trained scalars."""

    kind = "squashed_gaussian"
    widths = (256, 256, 256)
    outputs = 2

    def _initialise(self) -> None:
        head = self.body.linears[-1]
        assert isinstance(head, nn.Linear)
        nn.init.xavier_uniform_(head.weight, gain=0.01)
        nn.init.zeros_(head.bias)
        self.log_std_scale = nn.Parameter(torch.tensor(1.0))
        self.log_std_offset = nn.Parameter(torch.tensor(-1.0))

    def forward(self, observation: Tensor) -> SquashedGaussian:
        """The distribution of actions at ``[…, B, S]``."""
        mean, raw = self.body(observation).chunk(2, -1)
        log_std = (self.log_std_scale * raw + self.log_std_offset).clamp(LOG_STD_MIN, LOG_STD_MAX)
        return SquashedGaussian(mean, log_std)

    distribution = forward  # typed, as a call is not

    def misfit(self, observation: Tensor, action: Tensor) -> Tensor:
        return -self.distribution(observation).log_prob(action)

    def density(self, observation: Tensor, action: Tensor, noise: Tensor) -> Density:
        policy = self.distribution(observation)
        return Density(policy.log_prob(action), -policy.sample(noise)[1], policy.mode())

    def sampled(self, observation: Tensor, noise: Tensor) -> Tensor:
        return self.distribution(observation).sample(noise)[0]

    def mode(self, observation: Tensor) -> Tensor:
        return self.distribution(observation).mode()

    def act(self, observation: FloatArray) -> FloatArray:
        mean, _ = self._numpy_moments(observation)
        return np.tanh(mean)

    def perform(self, observation: FloatArray, noise: FloatArray) -> FloatArray:
        mean, log_std = self._numpy_moments(observation)
        return np.tanh(mean + np.exp(log_std) * noise)

    def sampled_log_prob(self, observation: Tensor, noise: Tensor) -> Tensor:
        return self.distribution(observation).sample(noise)[1]

    def _numpy_moments(self, observation: FloatArray) -> tuple[FloatArray, FloatArray]:
        out = self.body.numpy(observation)
        size = out.shape[-1] // 2
        scale, offset = np.float32(self.log_std_scale.item()), np.float32(self.log_std_offset.item())
        log_std: NDArray[np.float32] = scale * out[..., size:] + offset
        return out[..., :size], np.minimum(np.maximum(log_std, LOG_STD_MIN), LOG_STD_MAX)
