"""The training environment's side of online learning: one step at a time, every transition into the buffer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from o2o_lightning.data.buffer import OnlineBuffer
from o2o_lightning.envs.make import UnitAction
from o2o_lightning.errors import UserError

FloatArray = NDArray[np.float32]


class Interaction:
    """Steps ``env`` and stores what was executed and what it led to, raw (un-normalised).

    ``explore`` maps a raw observation ``[S]`` to the executed action ``[A]`` in ``[-1, 1]``: the same action goes
    into the buffer (the official code stores it without its noise, D3).
    """

    def __init__(self, env: UnitAction, buffer: OnlineBuffer, seed: int) -> None:
        self.env, self.buffer = env, buffer
        self.observation: FloatArray = env.reset(seed=seed)[0]
        self.episode_return, self.episode_length = 0.0, 0
        self.episodes = 0
        self.last_return: float | None = None

    def step(self, explore: Callable[[FloatArray], FloatArray]) -> None:
        """One environment step."""
        action = explore(self.observation)
        observation, reward, terminated, truncated, _ = self.env.step(action)
        reward = float(reward)
        if not (np.isfinite(reward) and np.isfinite(observation).all()):
            raise UserError(
                f"environment {self.env.spec.id if self.env.spec else self.env}: step {self.episode_length} of episode "
                f"{self.episodes} returned a non-finite reward or observation (reward {reward}). "
                "Nothing was learned from it; check the simulator."
            )
        self.buffer.add(self.observation, action, reward, observation, bool(terminated), bool(truncated))
        self.observation = observation
        self.episode_return += reward
        self.episode_length += 1
        if terminated or truncated:
            self.last_return = self.episode_return
            self.episodes += 1
            self.episode_return, self.episode_length = 0.0, 0
            self.observation = self.env.reset()[0]
