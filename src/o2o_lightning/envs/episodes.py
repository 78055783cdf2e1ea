"""Deterministic evaluation on environments of its own, every time from the same start states."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from o2o_lightning.envs.make import NO_KWARGS, UnitAction, make_env
from o2o_lightning.envs.scores import normalized_score, score_or_return
from o2o_lightning.errors import Failure, UserError
from o2o_lightning.ranks import Ranks

FloatArray = NDArray[np.float32]
Act = Callable[[FloatArray], FloatArray]


class Player:
    """A policy in episodes that run side by side: ``function`` of the present observations, or, overridden, of more."""

    def __init__(self, function: Act) -> None:
        self.function = function

    def reset(self, episodes: int) -> None:
        """All of the ``episodes`` begin."""

    def act(self, observation: FloatArray, running: Sequence[int] = ()) -> FloatArray:
        """Actions ``[R, A]`` at the raw observations ``[R, S]`` of the episodes that still run."""
        return self.function(observation)

    def observe(self, reward: FloatArray, running: Sequence[int]) -> None:
        """The rewards ``[R]`` that those actions earned."""


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of a policy.

    Attributes:
        returns: undiscounted return of each episode, raw rewards.
        lengths: environment steps of each episode.
        score: normalised score of the mean return (0 random, 100 expert), None without a reference.
    """

    returns: list[float]
    lengths: list[int]
    score: float | None

    @property
    def return_mean(self) -> float:
        """Mean undiscounted return."""
        return float(np.mean(self.returns))

    @property
    def env_steps(self) -> int:
        """Environment steps that the evaluation took."""
        return sum(self.lengths)

    @property
    def value(self) -> float:
        """What policies are compared by: the score where a reference exists, else the mean return."""
        return score_or_return(self.score, self.return_mean)


class Evaluator:
    """Runs ``episodes`` episodes side by side, episode ``i`` always from the start state of ``seed + i``.

    Several processes share the episodes, and all of them know every result.

    The environments are built once and never shared with training, so no training episode is interrupted (D2).
    """

    def __init__(
        self,
        env_id: str,
        observation_dim: int,
        episodes: int,
        seed: int,
        reference: tuple[float, float] | None,
        layout: Sequence[str] = (),
        kwargs: Mapping[str, Any] = NO_KWARGS,
        ranks: Ranks = Ranks(),
    ) -> None:
        if episodes < 1:
            raise UserError("--data.eval_episodes 0: what is asked for plays episodes. Pass at least 1.")
        self.env_id, self.observation_dim = env_id, observation_dim
        self.seeds = range(seed, seed + episodes)[ranks.rank :: ranks.count]
        self.episodes, self.reference, self.layout = len(self.seeds), reference, tuple(layout)
        self.kwargs, self.ranks = dict(kwargs), ranks
        self._envs: list[UnitAction] = []

    def run(self, act: Act | Player) -> Evaluation:
        """Evaluates ``act``, a map from raw observations ``[B, S]`` to actions ``[B, A]``, or a policy with memory."""
        try:
            own = self._run(act if isinstance(act, Player) else Player(act)) if self.episodes else ([], [])
        except UserError:
            raise
        except Exception as error:
            raise Failure(
                f"environment {self.env_id}: an evaluation raised {type(error).__name__}: {error}. Check it; "
                "`o2o resume RUN_DIR` goes on with a run from its last checkpoint."
            ) from error
        # the episodes of all processes, in the order of their start states
        parts = self.ranks.all(own)
        turns = [divmod(i, len(parts)) for i in range(sum(len(returns) for returns, _ in parts))]
        returns = [parts[rank][0][turn] for turn, rank in turns]
        lengths = [parts[rank][1][turn] for turn, rank in turns]
        score = None if self.reference is None else normalized_score(float(np.mean(returns)), self.reference)
        return Evaluation(returns, lengths, score)

    def _run(self, player: Player) -> tuple[list[float], list[int]]:
        while len(self._envs) < self.episodes:
            self._envs.append(make_env(self.env_id, self.observation_dim, self.layout, self.kwargs))
        observations = np.stack([env.reset(seed=seed)[0] for seed, env in zip(self.seeds, self._envs, strict=True)])
        returns, lengths = np.zeros(self.episodes), np.zeros(self.episodes, dtype=int)
        running = list(range(self.episodes))
        player.reset(self.episodes)
        while running:
            actions = player.act(observations[running], running)
            rewards, still = np.zeros(len(running), np.float32), []
            for i, (env_index, action) in enumerate(zip(running, actions, strict=True)):
                observation, reward, terminated, truncated, _ = self._envs[env_index].step(action)
                observations[env_index] = observation
                rewards[i] = reward
                returns[env_index] += reward
                lengths[env_index] += 1
                if not (terminated or truncated):
                    still.append(env_index)
            player.observe(rewards, running)
            running = still
        return returns.tolist(), lengths.tolist()
