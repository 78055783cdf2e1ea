"""An environment in a process of its own: it steps while this process does something else."""

from __future__ import annotations

import random
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from o2o_lightning.child import Child, retold, told
from o2o_lightning.envs.make import UnitAction
from o2o_lightning.envs.snapshot import can_restore, opened, stored
from o2o_lightning.errors import UserError

FloatArray = NDArray[np.float32]
PATIENCE = 5.0  # seconds that it has to end what it has begun
ADVICE = "Check the simulator; `o2o resume RUN_DIR` goes on from the last checkpoint."


class RemoteEnv:
    """The environment that ``make`` makes, a picklable function that is called over there.

    Its observations, rewards and errors are those of the same environment here. What it draws from the process's global
    generators, and not from its own, is of the other process.

    Args:
        meanwhile: what is done between a request and its answer.
    """

    def __init__(self, make: Callable[[], UnitAction], seed: int, meanwhile: Callable[[], None]) -> None:
        self.meanwhile, self._asked = meanwhile, ""
        self._child = Child(serve, make, seed, torch.get_num_threads(), name="environment", advice=ADVICE)
        try:
            self.label: str = self._ask("label")
        except BaseException as error:
            self.close()
            if type(error) is UserError:
                raise UserError(
                    f"{error} With --data.env_process another process makes it, which knows an id that a script has "
                    "registered as `package.module:Env-v0`."
                ) from error
            raise

    def reset(self, *, seed: int | None = None) -> tuple[FloatArray, dict[str, Any]]:
        """As Gymnasium has it, without what the environment tells beside the observation."""
        return self._ask("reset", seed), {}

    def begin(self, action: FloatArray) -> Callable[[], Any]:
        """Begins a step, and returns what waits for its end."""
        self._send("step", action)
        return self._answer

    def snapshot(self) -> dict[str, Any]:
        """As :func:`o2o_lightning.envs.snapshot.snapshot`."""
        return opened(self._ask("snapshot"))

    def restore(self, state: dict[str, Any]) -> None:
        """As :func:`o2o_lightning.envs.snapshot.restore`."""
        self._ask("restore", stored(state))

    def simulator_state(self) -> dict[str, FloatArray]:
        """As :func:`o2o_lightning.envs.snapshot.simulator_state`."""
        return self._ask("simulator_state")  # type: ignore[no-any-return]

    def can_restore(self, make: Callable[[], UnitAction]) -> bool:
        """As :func:`o2o_lightning.envs.snapshot.can_restore`."""
        return self._ask("can_restore", make)  # type: ignore[no-any-return]

    def close(self) -> None:
        """Ends the process, which closes its environment if it is not at work."""
        self._child.close(PATIENCE)

    def _ask(self, name: str, *given: Any) -> Any:
        self._send(name, *given)
        return self._answer()

    def _send(self, name: str, *given: Any) -> None:
        if self._asked:
            raise RuntimeError(f"the environment is asked to {name}, and has not answered to {self._asked} yet")
        if self._child.connection.closed:
            raise UserError(
                "the environment of this DataModule was closed, and its process has ended (--data.env_process). Make "
                "another DataModule for another fit."
            )
        try:
            self._child.connection.send((name, given))
        except OSError as error:
            raise self._child.ended() from error
        self._asked = name

    def _answer(self) -> Any:
        self.meanwhile()
        error, answer = self._child.answer()
        self._asked = ""
        if error is not None:
            raise retold(error)
        return answer


def serve(connection: Connection[Any, Any], make: Callable[[], UnitAction], seed: int, threads: int) -> None:
    """Answers requests: with the error, None for none, and what was asked for; at the end closes the environment."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
    env: UnitAction | None = None
    try:
        while True:
            name, given = connection.recv()
            try:
                env = env or make()
                answer: tuple[Any, Any] = (None, ANSWERS[name](env, *given))
            except Exception as error:
                answer = told(error), None
            connection.send(answer)
    finally:
        if env is not None:
            env.close()


ANSWERS: dict[str, Callable[..., Any]] = {
    "label": lambda env: env.label,
    "reset": lambda env, seed: env.reset(seed=seed)[0],
    "step": lambda env, action: (*env.step(action)[:4], {}),
    "snapshot": lambda env: stored(env.snapshot()),
    "restore": lambda env, state: env.restore(opened(state)),
    "simulator_state": lambda env: env.simulator_state(),
    "can_restore": lambda _, make: can_restore(make),
}
