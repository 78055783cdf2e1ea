"""What a policy earns from the states that it visits, and what a critic says of that."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from o2o_lightning.data.module import OfflineData
from o2o_lightning.envs.episodes import FloatArray, Player
from o2o_lightning.nn.critics import Critics
from o2o_lightning.nn.normalizer import Normalizer
from o2o_lightning.objectives.bellman import least
from o2o_lightning.objectives.diagnostics import correlation
from o2o_lightning.objectives.returns import discounted_returns

STATES = 1024


@dataclass
class Play(Player):
    """A policy at play, with what it has seen, done and earned."""

    player: Player
    seen: list[list[FloatArray]] = field(default_factory=list)
    done: list[list[FloatArray]] = field(default_factory=list)
    earned: list[list[float]] = field(default_factory=list)

    def reset(self, episodes: int) -> None:
        self.seen, self.done, self.earned = [], [], []
        for part in (self.seen, self.done, self.earned):
            part.extend([] for _ in range(episodes))
        self.player.reset(episodes)

    def act(self, observation: FloatArray, running: Sequence[int] = ()) -> FloatArray:
        actions = self.player.act(observation, running)
        for i, state, action in zip(running, observation, actions, strict=True):
            self.seen[i].append(state.copy())
            self.done[i].append(action.copy())
        return actions

    def observe(self, reward: FloatArray, running: Sequence[int]) -> None:
        for i, value in zip(running, reward, strict=True):
            self.earned[i].append(float(value))
        self.player.observe(reward, running)


@dataclass(frozen=True)
class Visits:
    """States ``[B, S]`` that the policy visits, its actions there ``[B, A]``, and what it earned from there ``[B]``."""

    observation: Tensor
    action: Tensor
    value: Tensor


def visits(play: Play, data: OfflineData, discount: float) -> Visits:
    """Of some states of its episodes, those of all processes.

    Values are discounted returns of the rewards that are learned. An episode that reaches the time limit would have
    gone on: as if it earned its mean reward for ever.
    """
    assert data.env is not None
    values = []
    for earned in play.earned:
        reward = data.rewards(torch.tensor(earned))
        if len(earned) == data.env.horizon:
            reward[-1] += discount * reward.mean() / (1.0 - discount)
        end = torch.zeros(len(reward), dtype=torch.bool)
        end[-1] = True
        values.append(discounted_returns(reward, end, discount))
    own = [[*map(np.stack, play.seen)], [*map(np.stack, play.done)], [value.numpy() for value in values]]
    parts = zip(*data.ranks.all(own), strict=True)  # of each column; a process may have played no episode
    columns = [torch.from_numpy(np.concatenate([episode for own in part for episode in own])) for part in parts]
    rows = torch.randperm(len(columns[0]), generator=torch.Generator().manual_seed(0))[:STATES]
    return Visits(*(column[rows] for column in columns))


@torch.no_grad()
def evaluated(critic: Critics, normalizer: Normalizer, visited: Visits) -> Tensor:
    """The lesser of the critic's values ``[B]`` of what the policy did, wherever the critic is; on the CPU."""
    device = next(critic.parameters()).device
    return least(critic(normalizer(visited.observation).to(device), visited.action.to(device))).cpu()


def against(value: Tensor, visited: Visits) -> dict[str, float]:
    """Values ``[B]`` against those that the policy has earned."""
    truth = float(visited.value.mean())
    found = {"value": float(value.mean()), "truth": truth, "correlation": correlation(value, visited.value)}
    return {**found, "error": abs(found["value"] - truth) / max(abs(truth), 1e-8)}
