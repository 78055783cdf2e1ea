"""The policies of IQL and PPO: a plain Gaussian around a squashed mean, with one σ or one for each state."""

import math

import numpy as np
import torch
from torch import Tensor, nn

from o2o_lightning.nn.actor import Density, FloatArray, StochasticActor
from o2o_lightning.nn.mlp import orthogonal_

HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)
LOWEST, HALF_RANGE = -5.0, 2.5  # of log σ, where it is a head's


class GaussianActor(StochasticActor):
    """``S → hidden → A``, ReLU, tanh on the mean; one log σ for all states.

    The distribution itself is not squashed: an executed action is a sample clipped to ±1, and its log-probability is
    the un-truncated Normal's at that clipped action.

    With ``mean="linear"`` the mean has no tanh, and the deterministic action is the clipped mean: policies of other
    libraries are like that.

    ``log_std_bounds``: where log σ is clamped; a phase may narrow them (IQL −20…2, O2PPO −10…2).
    """

    kind = "gaussian"

    def _initialise(self) -> None:
        super()._initialise()
        self.raw_log_std = nn.Parameter(torch.zeros(self.spec.action_dim))
        self.log_std_bounds = (-20.0, 2.0)

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, S] → `` mean ``[B, A]`` and log σ ``[A]``."""
        mean = self.body(observation)
        return torch.tanh(mean) if self.spec.mean == "tanh" else mean, self.log_std()

    def log_std(self) -> Tensor:
        """The clamped log σ ``[A]``; no gradient where the clamp holds it."""
        return self.raw_log_std.clamp(*self.log_std_bounds)

    def log_prob(self, observation: Tensor, action: Tensor) -> Tensor:
        """Log-density of executed actions: ``[B, S], [B, A] → [B]``."""
        mean, log_std = self(observation)
        return normal_log_prob(mean, log_std, action)

    def misfit(self, observation: Tensor, action: Tensor) -> Tensor:
        return -self.log_prob(observation, action)

    def density(self, observation: Tensor, action: Tensor, noise: Tensor) -> Density:
        mean, log_std = self(observation)
        log_prob = normal_log_prob(mean, log_std, action)
        return Density(log_prob, normal_entropy(log_std).expand_as(log_prob), mean.clamp(-1.0, 1.0))

    def sampled(self, observation: Tensor, noise: Tensor) -> Tensor:
        mean, log_std = self(observation)
        return (mean + log_std.exp() * noise).clamp(-1.0, 1.0)  # type: ignore[no-any-return]

    def mode(self, observation: Tensor) -> Tensor:
        return self(observation)[0].clamp(-1.0, 1.0)  # type: ignore[no-any-return]

    def act(self, observation: FloatArray) -> FloatArray:
        return np.clip(self._numpy_moments(observation)[0], -1.0, 1.0)

    def perform(self, observation: FloatArray, noise: FloatArray) -> FloatArray:
        mean, log_std = self._numpy_moments(observation)
        return np.asarray(np.clip(mean + np.exp(log_std) * noise, -1.0, 1.0), np.float32)

    def sampled_log_prob(self, observation: Tensor, noise: Tensor) -> Tensor:
        mean, log_std = self(observation)
        return normal_log_prob(mean, log_std, mean + log_std.exp() * noise)

    def _numpy_moments(self, observation: FloatArray) -> tuple[FloatArray, FloatArray]:
        mean = self.body.numpy(observation)
        log_std = np.clip(self.raw_log_std.detach().cpu().numpy(), *self.log_std_bounds)
        return np.tanh(mean) if self.spec.mean == "tanh" else mean, log_std

    @torch.no_grad()
    def cap_std(self, largest: float) -> None:
        """Sets every σ above ``largest`` to it, once; σ stays trainable and may rise again (D21)."""
        self.raw_log_std.clamp_(max=math.log(largest))


class GaussianHead(GaussianActor):
    r"""``S → hidden → 2A``, ReLU: a mean within ±1 and :math:`\log\sigma = -5 + 2.5(1 + \tanh x)`, both of the state.

    Uni-O4's (https://arxiv.org/abs/2311.03351).
    """

    kind = "gaussian_head"
    outputs = 2

    def _initialise(self) -> None:
        orthogonal_(self.body)

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, S] → `` mean and log σ ``[B, A]``."""
        mean, raw = self.body(observation).chunk(2, -1)
        return torch.tanh(mean), LOWEST + HALF_RANGE * (1.0 + self._bounded(raw))

    def _bounded(self, raw: Tensor) -> Tensor:
        return torch.tanh(raw)

    def _numpy_moments(self, observation: FloatArray) -> tuple[FloatArray, FloatArray]:
        out = self.body.numpy(observation)
        size = out.shape[-1] // 2
        bounded = self._bounded(torch.from_numpy(out[..., size:])).numpy()
        return np.tanh(out[..., :size]), np.float32(LOWEST) + np.float32(HALF_RANGE) * (np.float32(1.0) + bounded)


class ReleasedHead(GaussianHead):
    """As Uni-O4's code online: a second tanh, so that σ leaves [e⁻⁵, 1] for [e^−4.40, e^−0.60] (D86)."""

    kind = "gaussian_released_head"

    def _bounded(self, raw: Tensor) -> Tensor:
        return torch.tanh(torch.tanh(raw))


def normal_log_prob(mean: Tensor, log_std: Tensor, action: Tensor) -> Tensor:
    r"""Diagonal Normal's log-density :math:`\sum_j -\frac12 z_j^2 - \log\sigma_j - \frac12\log 2\pi`.

    Args: ``mean`` and ``action`` ``[B, A]``, ``log_std`` broadcastable to them. Returns ``[B]``.
    """
    z = (action - mean) * (-log_std).exp()
    return (-0.5 * z.square() - log_std - HALF_LOG_TWO_PI).sum(-1)


def normal_entropy(log_std: Tensor) -> Tensor:
    r"""Diagonal Normal's entropy :math:`\sum_j \log\sigma_j + \frac12 + \frac12\log 2\pi`: ``[…, A] → […]``."""
    return (log_std + 0.5 + HALF_LOG_TWO_PI).sum(-1)
