"""What a dataset needs of a training run and no replay buffer holds: simulator states and log-densities."""

import copy
import os
from pathlib import Path
from typing import IO, Any

import lightning as L
import numpy as np
from numpy.typing import NDArray

from o2o_lightning.callbacks.hooks import PhaseCallback
from o2o_lightning.checkpoint.io import writing
from o2o_lightning.recording.behaviour import LOG_PROB, Behaviour, PolicyBehaviour, UniformBehaviour


class Recorder(PhaseCallback):
    """Appends a float32 row an environment step to a file: the simulator's state before it, the action's log-density.

    The density is of the action in ``[-1, 1]^A``. A checkpoint waits until the file has reached the disk; a resumed
    run drops what came after its checkpoint.

    Args:
        path: the file.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self._file: IO[bytes] | None = None
        self._before: tuple[NDArray[np.float32], NDArray[np.float32], np.random.Generator] | None = None

    def on_train_start(self, trainer: L.Trainer, phase: Any) -> None:
        width = sum(record_widths(phase.data.interaction.env).values())
        with writing(self.path):
            self._file = self.path.open("r+b" if self.path.exists() else "w+b")
            self._file.truncate(4 * width * phase.env_steps)
            self._file.seek(0, os.SEEK_END)

    def on_train_batch_start(self, trainer: L.Trainer, phase: Any, batch: Any, batch_idx: int) -> None:
        if self._before is None:  # not at the start of training: a resumed run's environment is restored after it
            self._look(phase)

    def on_env_step(self, trainer: L.Trainer, phase: Any) -> None:
        assert self._before is not None and self._file is not None
        state, observation, generator = self._before
        actor = phase.policy()
        behaviour: Behaviour = PolicyBehaviour(actor, phase.normalizer)
        if phase.uniform:
            behaviour = UniformBehaviour(actor.spec.action_dim)
        # the phase's generator as it was before the step draws the same noise again
        log_prob = behaviour.log_prob(observation[None], behaviour.draw(generator)[None])
        assert log_prob is not None
        with writing(self.path):
            self._file.write(np.concatenate((state, log_prob)).tobytes())
        self._look(phase)

    def on_save_checkpoint(self, trainer: L.Trainer, phase: Any, checkpoint: dict[str, Any]) -> None:
        if self._file is not None:
            with writing(self.path):
                self._file.flush()
                os.fsync(self._file.fileno())

    def on_fit_end(self, trainer: L.Trainer, phase: Any) -> None:
        self._close()

    def on_exception(self, trainer: L.Trainer, phase: Any, exception: BaseException) -> None:
        self._close()

    def _look(self, phase: Any) -> None:
        interaction = phase.data.interaction
        state = np.concatenate([np.empty(0, np.float32), *interaction.env.simulator_state().values()])
        self._before = state, interaction.observation, copy.deepcopy(phase.data.generator)

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def record_widths(env: Any) -> dict[str, int]:
    """Names and widths of a row's parts, in order; ``env`` has been reset."""
    return {**{name: len(value) for name, value in env.simulator_state().items()}, LOG_PROB: 1}


def read_record(path: Path, env: Any, rows: int) -> dict[str, NDArray[np.float32]]:
    """The first ``rows`` rows of a record, by name; the log-densities are ``[rows]``, the rest ``[rows, width]``."""
    widths = record_widths(env)
    values = np.fromfile(path, np.float32, rows * sum(widths.values())).reshape(rows, -1)
    parts = np.split(values, np.cumsum([*widths.values()])[:-1], axis=1)
    record = dict(zip(widths, parts, strict=True))
    return {**record, LOG_PROB: record[LOG_PROB][:, 0]}
