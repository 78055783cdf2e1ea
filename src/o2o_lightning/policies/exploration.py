"""Exploration that our families have not, replaced by the constant nearest to it.

Generalised state-dependent exploration (gSDE, https://arxiv.org/abs/2005.05719) draws a matrix of noise now and then
and multiplies it with features of the state. The mean is that of any perceptron.
"""

from dataclasses import dataclass

import numpy as np

from o2o_lightning.nn.actor import FloatArray
from o2o_lightning.policies.source import FUNCTIONS, Array, ImportedPolicy, Linear

EPSILON = 1e-6  # that gSDE adds to the variance
SEARCH_NOISE = 0.1  # σ of half the range of actions, of policies that have none


@dataclass
class StateNoise:
    r"""gSDE's deviation :math:`\sigma_j(s)^2 = \sum_i \phi_i(s)^2 \sigma_{ij}^2 + \epsilon`.

    Args:
        layers: of the features φ, each followed by the policy's activation.
        std: ``[F, A]``.
    """

    layers: list[Linear]
    std: Array

    def deviation(self, policy: ImportedPolicy, observation: FloatArray) -> Array:
        """Root of the mean variance ``[A]`` over observations ``[B, S]``."""
        x = policy.normalized(observation)
        for weight, bias in self.layers:
            x = FUNCTIONS[policy.activation](x @ weight.T + bias)
        found: Array = np.sqrt((np.square(x) @ np.square(self.std)).mean(0) + EPSILON)
        return found


def settle(policy: ImportedPolicy, observation: FloatArray, where: str) -> None:
    """Makes gSDE's noise constant: the deviation that it has on average in ``observation``."""
    if not isinstance(policy.noise, StateNoise):
        return
    log_std = np.log(policy.noise.deviation(policy, observation))
    policy.log_std = (np.zeros_like(policy.mean[0]), log_std) if isinstance(policy.log_std, tuple) else log_std
    shown = ", ".join(f"{value:.2g}" for value in np.exp(log_std)[:8])
    policy.altered = f"its exploration replaced: gSDE by a constant σ of {shown}, its own mean over {where}"


def expln(log_std: Array) -> Array:
    """Stable-Baselines3's ``use_expln``: the exponential below zero, 1 + log(1 + x) above."""
    return np.where(log_std > 0, np.log1p(np.maximum(log_std, 0.0) + EPSILON) + 1.0, np.exp(np.minimum(log_std, 0.0)))


def clipped(layers: list[Linear], limit: float) -> list[Linear]:
    """``layers`` with the last one's output clipped to ±``limit``, by two layers of ReLU: limit − … is exact.

    With h = relu(c − x), min(max(x, −c), c) = relu(2c − h) − c.
    """
    weight, bias = layers[-1]
    one = np.eye(len(weight))
    return [
        *layers[:-1],
        (-weight, limit - bias),
        (-one, np.full(len(weight), 2.0 * limit)),
        (one, np.full(len(weight), -limit)),
    ]
