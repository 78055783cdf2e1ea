"""What can be cloned: a policy of ours, or anything that maps observations to actions.

Sequence policies, which act on more than one observation, have their teacher in :mod:`.history`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from o2o_lightning.blocks import blocks
from o2o_lightning.envs.episodes import Act, Memoryless, Player
from o2o_lightning.nn.actor import Actor, FloatArray, StochasticActor
from o2o_lightning.nn.normalizer import Normalizer
from o2o_lightning.replay.store import TransitionStore

LABEL_BLOCK = 8192  # rows that a policy takes at once


class Teacher:
    """A policy in raw observations; actions are in ``[-1, 1]``. ``kind`` is its family, None for a black box."""

    kind: str | None = None

    def act(self, observation: FloatArray) -> FloatArray:
        """Deterministic actions ``[B, A]`` at raw observations ``[B, S]``, of a policy that needs no more."""
        raise NotImplementedError(type(self).__name__)

    def label(self, store: TransitionStore, device: torch.device) -> Tensor:
        """Deterministic actions ``[N, A]`` at every row of ``store``; networks may use ``device``."""
        raw = store.leaves["observation"]
        return torch.cat([torch.from_numpy(self.act(raw[rows].numpy())) for rows in blocks(len(store), LABEL_BLOCK)])

    def player(self) -> Player:
        """The same policy, to be evaluated."""
        return Memoryless(self.act)

    def sampled(self, observation: Tensor, noise: Tensor) -> Tensor | None:
        """Actions ``[B, A]`` as the policy executes them, at *normalised* observations; None without a density."""
        return None


class ActorTeacher(Teacher):
    """A policy of ours with the normaliser that it learned with."""

    def __init__(self, actor: Actor, normalizer: Normalizer) -> None:
        self.actor, self.normalizer = actor.requires_grad_(False), normalizer
        self.kind = actor.kind

    def act(self, observation: FloatArray) -> FloatArray:
        return self.actor.act(self.normalizer.numpy(observation))

    @torch.no_grad()
    def sampled(self, observation: Tensor, noise: Tensor) -> Tensor | None:
        if not isinstance(self.actor, StochasticActor):
            return None
        return self.actor.to(observation.device).sampled(observation, noise)


class CallableTeacher(Teacher):
    """Any function from raw observations ``[B, S]`` to actions in ``[-1, 1]``.

    It gets copies, since it may write into what it is given, which is the dataset.
    """

    def __init__(self, function: Act) -> None:
        self.function = function

    def act(self, observation: FloatArray) -> FloatArray:
        return np.asarray(self.function(observation.copy()), np.float32)
