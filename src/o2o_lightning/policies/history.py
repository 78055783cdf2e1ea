"""Policies at work: in an environment, and as what a clone imitates; some act on the episode's history."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from o2o_lightning.blocks import blocks
from o2o_lightning.envs.episodes import FloatArray, Player
from o2o_lightning.nn.actor import Actor, Policy, StochasticActor
from o2o_lightning.nn.decision_transformer import SequencePolicy, Window
from o2o_lightning.nn.normalizer import Normalizer
from o2o_lightning.replay.store import TransitionStore
from o2o_lightning.replay.windows import Windows

BLOCK = 512  # windows that a network takes at once
LABEL_BLOCK = 8192  # rows that a policy takes at once


def player_of(policy: Policy, normalizer: Normalizer) -> Teacher:
    """``policy`` with the normaliser that it learned with, ready for episodes and to be imitated."""
    if isinstance(policy, SequencePolicy):
        return HistoryPlayer(policy, normalizer)
    assert isinstance(policy, Actor)
    return ActorPlayer(policy, normalizer)


@torch.no_grad()
def modes_of(policy: SequencePolicy, window: Window) -> Tensor:
    """Deterministic actions ``[B, T, A]`` without dropout, on the policy's own device and back."""
    device, training = next(policy.parameters()).device, policy.training
    policy.eval()
    actions = policy.modes(Window(*(part.to(device) for part in window))).float().cpu()
    policy.train(training)
    return actions


class Teacher(Player):
    """A player that can be imitated; ``kind`` is its family, None for a black box."""

    kind: str | None = None

    def label(self, store: TransitionStore, device: torch.device) -> Tensor:
        """Deterministic actions ``[N, A]`` at every row of ``store``; networks may use ``device``."""
        raw = store["observation"]
        return torch.cat([torch.from_numpy(self.act(raw[rows].numpy())) for rows in blocks(len(store), LABEL_BLOCK)])

    def sampled(self, observation: Tensor, noise: Tensor) -> Tensor | None:
        """Actions ``[B, A]`` as the policy executes them, at *normalised* observations; None without a density."""
        return None


class ActorPlayer(Teacher):
    """A policy of ours with the normaliser that it learned with."""

    def __init__(self, actor: Actor, normalizer: Normalizer) -> None:
        super().__init__(lambda observation: actor.act(normalizer.numpy(observation)))
        self.actor, self.kind = actor, actor.kind

    @torch.no_grad()
    def sampled(self, observation: Tensor, noise: Tensor) -> Tensor | None:
        if not isinstance(self.actor, StochasticActor):
            return None
        return self.actor.to(observation.device).sampled(observation, noise)


class HistoryPlayer(Teacher):
    """Asks for ``target_return`` at the start, and for what is left of it after each reward.

    Episodes begin together, so that those that still run have the same number of steps behind them. As a teacher of a
    policy without memory, it sees each state of the dataset with what its own episode had before it. The dataset's
    returns would ask for what the episodes had, good or bad; the policy is asked for its evaluation return instead,
    less the rewards so far. What is imitated is its mode (A5): a sample would need the history once more.
    """

    def __init__(self, policy: SequencePolicy, normalizer: Normalizer) -> None:
        self.policy, self.normalizer, self.spec, self.kind = policy, normalizer, policy.spec, policy.kind

    def reset(self, episodes: int) -> None:
        spec, steps = self.spec, self.spec.acting_context
        self.steps = 0
        self.wanted = np.full(episodes, spec.target_return * spec.return_scale, np.float32)
        self.to_go = np.zeros((episodes, steps), np.float32)
        self.observations = np.zeros((episodes, steps, spec.observation_dim), np.float32)
        self.actions = np.zeros((episodes, steps, spec.action_dim), np.float32)

    def act(self, observation: FloatArray, running: Sequence[int] = ()) -> FloatArray:
        context, rows = self.spec.acting_context, np.asarray(running)
        if self.steps >= context:
            for history in (self.to_go, self.observations, self.actions):
                history[:, :-1] = history[:, 1:]
        now = min(self.steps, context - 1)
        self.to_go[:, now] = self.wanted
        self.observations[rows, now] = self.normalizer.numpy(observation)
        parts = [part[rows, : now + 1] for part in (self.to_go, self.observations, self.actions)]
        timestep = torch.arange(self.steps - now, self.steps + 1).expand(len(rows), -1)
        window = Window(*(torch.from_numpy(part) for part in parts), timestep)  # type: ignore[call-arg]
        action: FloatArray = modes_of(self.policy, window)[:, -1].numpy()
        self.actions[rows, now] = action
        self.steps += 1
        return action

    def observe(self, reward: FloatArray, running: Sequence[int]) -> None:
        self.wanted[np.asarray(running)] -= reward * np.float32(self.spec.return_scale)

    def label(self, store: TransitionStore, device: torch.device) -> Tensor:
        policy, spec = self.policy.to(device), self.policy.spec
        windows = Windows(store, spec.acting_context, spec.return_scale)
        labels = torch.empty(len(store), spec.action_dim)
        for rows, asked in windows.contexts(BLOCK):
            steps = windows.gather(rows, spec.target_return)
            observation = self.normalizer(steps["observation"])
            window = Window(steps["return_to_go"], observation, steps["action"], steps["timestep"])
            places = rows.unsqueeze(-1) + torch.arange(windows.length)
            labels[places[asked]] = modes_of(policy, window)[asked]
        return labels
