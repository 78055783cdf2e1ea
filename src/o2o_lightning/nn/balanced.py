"""FamO2O's policy (Wang et al. 2023, https://arxiv.org/abs/2310.17966): one for each balance, and who chooses it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from o2o_lightning.nn.actor import Density, FloatArray, Policy, PolicySpec, StochasticActor
from o2o_lightning.nn.gaussian import GaussianActor
from o2o_lightning.nn.squashed_gaussian import SquashedGaussianActor

EMBEDDING, WAVELENGTH = 6, 10_000.0


@dataclass(frozen=True)
class BalancedSpec(PolicySpec):
    """Of a family of policies and its balance: widths of both, and between what the balance lies."""

    hidden: tuple[int, ...]
    lowest: float
    highest: float


class BalancedActor(StochasticActor):
    """A Gaussian of the state and of a balance b, which a squashed Gaussian of the state chooses: its mode, to act."""

    kind = "balanced"
    spec: BalancedSpec  # type: ignore[assignment]

    def __init__(
        self, observation_dim: int, action_dim: int, hidden: Sequence[int], lowest: float, highest: float
    ) -> None:
        Policy.__init__(self)
        self.spec = BalancedSpec(self.kind, observation_dim, action_dim, tuple(hidden), lowest, highest)
        self.family = GaussianActor(observation_dim + EMBEDDING, action_dim, hidden)
        self.balance = SquashedGaussianActor(observation_dim, 1, hidden)

    def scaled(self, unit: Tensor) -> Tensor:
        """A balance ``[…]`` of what lies within ±1, ``[…, 1]``."""
        return self.spec.lowest + 0.5 * (self.spec.highest - self.spec.lowest) * (unit.squeeze(-1) + 1.0)

    def beside(self, observation: Tensor, balance: Tensor | None = None) -> Tensor:
        """The state and its balance ``[…]``, the chosen one where none is given, as the family sees them."""
        chosen = self.scaled(self.balance.mode(observation)) if balance is None else balance
        return torch.cat((observation, embedded(chosen)), -1)

    def mode(self, observation: Tensor) -> Tensor:
        return self.family.mode(self.beside(observation))

    def misfit(self, observation: Tensor, action: Tensor) -> Tensor:
        return self.family.misfit(self.beside(observation), action)

    def density(self, observation: Tensor, action: Tensor, noise: Tensor) -> Density:
        return self.family.density(self.beside(observation), action, noise)

    def sampled(self, observation: Tensor, noise: Tensor) -> Tensor:
        return self.family.sampled(self.beside(observation), noise)

    def sampled_log_prob(self, observation: Tensor, noise: Tensor) -> Tensor:
        return self.family.sampled_log_prob(self.beside(observation), noise)

    def act(self, observation: FloatArray) -> FloatArray:
        return self.family.act(self._beside(observation))

    def perform(self, observation: FloatArray, noise: FloatArray) -> FloatArray:
        return self.family.perform(self._beside(observation), noise)

    def _beside(self, observation: FloatArray) -> FloatArray:
        chosen = embedded(self.scaled(torch.from_numpy(self.balance.act(observation)))).numpy()
        return np.concatenate((observation, chosen), -1, dtype=np.float32)


def embedded(balance: Tensor) -> Tensor:
    """Sines and cosines of a balance ``[…]`` at three wavelengths, ``[…, 6]``."""
    powers = torch.arange(EMBEDDING // 2, dtype=balance.dtype, device=balance.device)
    angles = balance.unsqueeze(-1) * torch.exp(-math.log(WAVELENGTH) * 2.0 * powers / EMBEDDING)
    return torch.cat((angles.sin(), angles.cos()), -1)
