"""How long a step of a phase takes, and one of its evaluations."""

import json
import time
from pathlib import Path
from typing import Any

import lightning as L

from o2o_lightning.callbacks.hooks import PhaseCallback, Watched
from o2o_lightning.envs.episodes import Evaluation

Mark = tuple[float, int, int]  # the time, the phase's clock, and its updates


class Pace(PhaseCallback):
    """Times a short run, for an estimate of a long one: adds a line of JSON to a file when the phase has ended.

    ``step``: seconds a step of the phase's clock, with its updates; null where none came. ``evaluation``: seconds an
    environment step of an evaluation; null where none was. ``horizon``: most steps of an episode, null where unknown.

    Args:
        path: the file.
        whole: time all of the run; otherwise what follows the first updates, when everything is warm.
    """

    def __init__(self, path: str, whole: bool = False) -> None:
        self.path, self.whole = Path(path), whole
        self._first: Mark | None = None
        self._last: Mark | None = None
        self._evaluation: float | None = None

    def on_train_batch_start(self, trainer: L.Trainer, phase: Any, batch: Any, batch_idx: int) -> None:
        if self._first is None and (self.whole or phase.updates):
            self._first = _mark(phase)

    def on_train_end(self, trainer: L.Trainer, phase: Any) -> None:
        self._last = _mark(phase)  # before the last evaluation: the phase's own callbacks come behind

    def on_evaluation(self, trainer: L.Trainer, phase: Watched, result: Evaluation) -> None:
        if self._last is not None:
            self._evaluation = (time.monotonic() - self._last[0]) / result.env_steps

    def on_fit_end(self, trainer: L.Trainer, phase: Any) -> None:
        step, first, last = None, self._first, self._last
        if first is not None and last is not None and last[2] > first[2]:
            step = (last[0] - first[0]) / (last[1] - first[1])
        horizon = None if phase.data.env is None else phase.data.env.horizon
        found = {"phase": phase.phase, "step": step, "evaluation": self._evaluation, "horizon": horizon}
        with self.path.open("a") as file:
            file.write(json.dumps(found) + "\n")


def _mark(phase: Watched) -> Mark:
    return time.monotonic(), phase.clock, phase.updates
