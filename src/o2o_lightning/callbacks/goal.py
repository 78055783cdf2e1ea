"""Early stopping at a level of performance, as D4RL's `medium` agents."""

from typing import Any, Literal

import lightning as L
import numpy as np

from o2o_lightning.callbacks.hooks import PhaseCallback
from o2o_lightning.envs.episodes import Evaluation, Player
from o2o_lightning.seeds import run_seed


class StopAtGoal(PhaseCallback):
    """Ends training when the *sampled* policy reaches a goal: D4RL records samples, and its level is theirs.

    It looks at each evaluation after the first update, with samples from the evaluation's own start states.

    Args:
        goal: the mean to reach.
        unit: of the goal: ``score`` (0 random, 100 expert) or ``return``.
    """

    kept = ("reached", "curve")

    def __init__(self, goal: float, unit: Literal["score", "return"] = "score") -> None:
        self.goal, self.unit = goal, unit
        self.reached = False
        self.curve: list[list[float | None]] = []

    def on_train_start(self, trainer: L.Trainer, phase: Any) -> None:
        phase.display["goal"] = self.goal
        if self.reached:  # a kill came between the evaluation that reached it and the end
            trainer.should_stop = True

    def on_evaluation(self, trainer: L.Trainer, phase: Any, result: Evaluation) -> None:
        if phase.updates == 0:
            return
        actor, normalizer = phase.policy(), phase.normalizer
        generator = np.random.default_rng([run_seed(), phase.env_steps])
        player = Player(lambda observation: actor.explore(normalizer.numpy(observation), generator))
        sampled = phase.evaluate_player(player)
        self.curve.append([phase.env_steps, sampled.return_mean, sampled.score])
        row = {"sampled_return_mean": sampled.return_mean}
        phase.log_now(row if sampled.score is None else {**row, "sampled_score": sampled.score})
        value = sampled.return_mean if self.unit == "return" else sampled.score
        phase.display["sampled"] = value
        if value is not None and value >= self.goal:
            self.reached = True
            trainer.should_stop = True
