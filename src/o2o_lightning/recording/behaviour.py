"""What acts while a dataset is recorded, and how likely its actions were."""

import math
from typing import Protocol

import numpy as np
import torch

from o2o_lightning.nn.actor import Actor, FloatArray, StochasticActor
from o2o_lightning.nn.normalizer import Normalizer

LOG_PROB = "action_log_probs"


class Behaviour(Protocol):
    """Actions from raw observations and noise that was drawn for them: the noise is what makes a log-density exact."""

    def draw(self, generator: np.random.Generator) -> FloatArray:
        """The noise ``[A]`` of one action."""

    def act(self, observation: FloatArray, noise: FloatArray) -> FloatArray:
        """The action ``[A]`` in ``[-1, 1]`` at a raw observation ``[S]``."""

    def log_prob(self, observations: FloatArray, noise: FloatArray) -> FloatArray | None:
        """Log-densities ``[T]`` of the actions at ``[T, S]`` in ``[-1, 1]^A``; None without a density."""


class UniformBehaviour:
    """Uniform over ``[-1, 1]^A``."""

    def __init__(self, action_dim: int) -> None:
        self.action_dim = action_dim

    def draw(self, generator: np.random.Generator) -> FloatArray:
        return generator.uniform(-1.0, 1.0, self.action_dim).astype(np.float32)

    def act(self, observation: FloatArray, noise: FloatArray) -> FloatArray:
        return noise

    def log_prob(self, observations: FloatArray, noise: FloatArray) -> FloatArray | None:
        return np.full(len(noise), -self.action_dim * math.log(2.0), np.float32)


class PolicyBehaviour:
    """A policy's own samples; its only action where it is deterministic."""

    def __init__(self, actor: Actor, normalizer: Normalizer) -> None:
        self.actor, self.normalizer = actor, normalizer

    def draw(self, generator: np.random.Generator) -> FloatArray:
        return generator.standard_normal(self.actor.spec.action_dim, dtype=np.float32)

    def act(self, observation: FloatArray, noise: FloatArray) -> FloatArray:
        observation = self.normalizer.numpy(observation)
        if isinstance(self.actor, StochasticActor):
            return self.actor.perform(observation, noise)
        return self.actor.act(observation)

    @torch.no_grad()
    def log_prob(self, observations: FloatArray, noise: FloatArray) -> FloatArray | None:
        if not isinstance(self.actor, StochasticActor):
            return None
        device = next(self.actor.parameters()).device
        normalized = torch.from_numpy(self.normalizer.numpy(observations)).to(device)
        log_prob = self.actor.sampled_log_prob(normalized, torch.from_numpy(noise).to(device))
        return np.asarray(log_prob.float().cpu().numpy(), np.float32)
