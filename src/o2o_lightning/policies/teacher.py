"""What can be cloned: a policy of ours, or anything that maps observations to actions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from o2o_lightning.data.normalize import Normalizer
from o2o_lightning.nn.actor import Actor, FloatArray, StochasticActor


class Teacher(Protocol):
    """A policy on raw observations; actions are in ``[-1, 1]``."""

    @property
    def kind(self) -> str | None:
        """Its family, None for a black box."""

    def act(self, observation: FloatArray) -> FloatArray:
        """Deterministic actions ``[B, A]`` at raw observations ``[B, S]``."""

    def sampled(self, observation: Tensor, noise: Tensor) -> Tensor | None:
        """Actions ``[B, A]`` as the policy executes them, at *normalised* observations; None without a density."""


class ActorTeacher:
    """A policy of ours with the normaliser that it learned with."""

    def __init__(self, actor: Actor, normalizer: Normalizer) -> None:
        self.actor, self.normalizer = actor.requires_grad_(False), normalizer
        self.kind: str | None = actor.kind

    def act(self, observation: FloatArray) -> FloatArray:
        return self.actor.act(self.normalizer.numpy(observation))

    @torch.no_grad()
    def sampled(self, observation: Tensor, noise: Tensor) -> Tensor | None:
        if not isinstance(self.actor, StochasticActor):
            return None
        return self.actor.to(observation.device).sampled(observation, noise)


class CallableTeacher:
    """Any function from raw observations ``[B, S]`` to actions in ``[-1, 1]``."""

    kind: str | None = None

    def __init__(self, function: Callable[[FloatArray], FloatArray]) -> None:
        self.function = function

    def act(self, observation: FloatArray) -> FloatArray:
        return np.asarray(self.function(observation), np.float32)

    def sampled(self, observation: Tensor, noise: Tensor) -> Tensor | None:
        return None
