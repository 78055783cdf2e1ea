"""The training environment's side of online learning: one step at a time, every transition into the buffer."""

import contextlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from o2o_lightning.envs.make import UnitAction
from o2o_lightning.envs.remote import RemoteEnv
from o2o_lightning.errors import Failure, UserError
from o2o_lightning.seeds import restart_seed

FloatArray = NDArray[np.float32]
REMEDY = "Nothing was learned from it; check the simulator, then `o2o resume RUN_DIR` goes on from the last checkpoint."


class Interaction:
    """Steps an environment and stores what was executed and what it led to, raw (un-normalised).

    ``explore`` maps a raw observation ``[S]`` to the executed action ``[A]`` in ``[-1, 1]``: the same action goes
    into the ``buffer`` (the official code stores it without its noise, D3), a ring or what takes transitions alike.

    With ``meanwhile`` the environment is in a process of its own, and this is what is done while it is at work.
    """

    def __init__(
        self, make: Callable[[], UnitAction], buffer: Any, seed: int, meanwhile: Callable[[], None] | None = None
    ) -> None:
        self.make, self.buffer, self.seed = make, buffer, seed
        self.env = make() if meanwhile is None else RemoteEnv(make, seed, meanwhile)
        self.name = self.env.label
        try:
            self.observation: FloatArray = self._guarded(lambda: self.env.reset(seed=seed))[0]
        except BaseException:
            with contextlib.suppress(Exception):
                self.env.close()
            raise
        self.episode_return, self.episode_length = 0.0, 0
        self.episodes, self.steps, self.last_length = 0, 0, 0
        self.last_return: float | None = None
        self._restorable: bool | None = None

    def step(self, explore: Callable[[FloatArray], FloatArray]) -> None:
        """One environment step."""
        self.begin(explore)
        self.end()

    def begin(self, explore: Callable[[FloatArray], FloatArray]) -> None:
        """Chooses the action of a step, which an environment of another process begins."""
        self.action = explore(self.observation)
        self._result = self.env.begin(self.action)

    def end(self) -> None:
        """Stores what came of the step that was begun."""
        observation, reward, terminated, truncated, _ = self._guarded(self._result)
        self.buffer.add(self.observation, self.action, reward, observation, terminated, truncated)
        self.observation = observation
        self.episode_return += reward
        self.episode_length += 1
        self.steps += 1
        if terminated or truncated:
            self.last_return = self.episode_return
            self._end_episode()
            self.observation = self._guarded(lambda: self.env.reset())[0]

    def state(self) -> dict[str, Any]:
        """Buffer, environment and counters: tensors and primitives. ``environment`` is None where it hides state."""
        if self._restorable is None:
            self._restorable = self.env.can_restore(self.make)
            if not self._restorable:
                self._note(
                    "its state cannot be saved. A resumed run starts a new episode, always the same, and so is not "
                    "bit-equal to an uninterrupted one."
                )
        return {
            "buffer": self.buffer.state(),
            "environment": self.env.snapshot() if self._restorable else None,
            "observation": torch.from_numpy(self.observation.copy()),
            "counters": [self.episode_return, self.episode_length, self.episodes, self.steps, self.last_return],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state`; where the environment could not be saved, a new episode."""
        self.buffer.load_state(state["buffer"])
        self.episode_return, self.episode_length, self.episodes, self.steps, self.last_return = state["counters"]
        if state["environment"] is not None:
            self.env.restore(state["environment"])
            self.observation = state["observation"].numpy()
            return
        self._note("its state was not saved; a new episode starts.")
        if self.episode_length:
            self.buffer.truncate_last()
            self._end_episode()
        self.observation = self._guarded(lambda: self.env.reset(seed=restart_seed(self.seed, self.steps)))[0]

    def _end_episode(self) -> None:
        self.episodes += 1
        self.last_length = self.episode_length
        self.episode_return, self.episode_length = 0.0, 0

    def _note(self, text: str) -> None:
        print(f"o2o: environment {self.name}: {text}", file=sys.stderr)

    def _failure(self, what: str) -> Failure:
        started = hasattr(self, "episodes")
        where = f"step {self.episode_length} of episode {self.episodes}" if started else "its first reset"
        return Failure(f"environment {self.name}: {where}{what}")

    def _guarded(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except UserError:
            raise
        except Exception as error:
            raise self._failure(f" raised {type(error).__name__}: {error}. {REMEDY}") from error
