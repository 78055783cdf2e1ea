"""The on-policy DataModule of the online phase."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase

from o2o_lightning.data.interacting import InteractingData
from o2o_lightning.errors import UserError
from o2o_lightning.replay.ring import Ring


@dataclass(eq=False, repr=False)
class RolloutData(InteractingData):
    """Collects a rollout with the current policy, then hands it out ``epochs`` times in shuffled minibatches.

    The dataset serves its normalisation constants and its facts; from scratch it may be absent.

    Args:
        rollout: environment steps between two updates of the policy, across episodes; the budget if that is less.
            What is left of the budget after the last whole rollout is stepped, and not learned from.
        epochs: passes over a rollout.
        num_envs: environments stepped side by side, in each process; those of all must divide ``rollout``,
            ``env_steps`` and ``eval_every``.
        batch_size: transitions a minibatch, drawn without replacement, of each process.
        chunk: environment steps a ``training_step``; changes speed, never results.
        eval_every: environment steps between evaluations.
    """

    env_steps: int = 250_000
    rollout: int = 2048
    epochs: int = 10
    num_envs: int = 1
    batch_size: int = 128
    chunk: int = 64
    eval_every: int = 2500

    def __post_init__(self) -> None:
        super().__post_init__()
        self.rollout = min(self.rollout, self.env_steps)
        self._check_stride(self.num_envs, f"--data.num_envs {self.num_envs}: it does")
        # whole steps of all environments, so that a chunk ends on a multiple as well
        self.chunk = max(self.chunk // self.num_envs, 1) * self.num_envs

    def rings(self) -> list[Ring]:
        processes = self.ranks.count
        self._check_stride(self.stride, f"{processes} processes with {self.num_envs} environments each: they do")
        rings = [Ring(self.rollout // self.stride, *self.sizes()) for _ in range(self.num_envs)]
        self.buffer.learn_from(*rings)
        return rings

    @property
    def stride(self) -> int:
        return self.num_envs * self.ranks.count

    @property
    def steps_before_updates(self) -> int:
        return self.rollout - 1

    @property
    def full(self) -> bool:
        """Whether a rollout has been collected."""
        return len(self.interactions[0].buffer) == self.rollout // self.stride

    def local_state(self) -> dict[str, Any]:
        return {**super().local_state(), "interactions": [interaction.state() for interaction in self.interactions]}

    def load_local_state(self, state: dict[str, Any]) -> None:
        super().load_local_state(state)
        for interaction, saved in zip(self.interactions, state["interactions"], strict=True):
            interaction.load_state(saved)

    def _check_stride(self, stride: int, subject: str) -> None:
        for name in ("rollout", "env_steps", "eval_every"):
            steps = getattr(self, name)
            if steps % stride:
                raise UserError(f"{subject} not divide --data.{name} {steps}. Change one.")

    def take(self, device: torch.device) -> TensorDictBase:
        """The rollout ``[N, T]`` in time order, ready for the networks; the buffers are empty again."""
        parts = []
        for interaction in self.interactions:
            parts.append(interaction.buffer.gather(torch.arange(len(interaction.buffer))))
            interaction.buffer.clear()
        rollout: TensorDict = torch.stack(parts)
        return self.prepare(rollout, device)

    def batches(self, numbers: TensorDictBase) -> Iterator[TensorDictBase]:
        yield numbers  # a minibatch, of a rollout that is near already

    def keep_near(self, device: torch.device) -> bool:
        return False

    def minibatches(self, rows: TensorDict) -> Iterator[TensorDictBase]:
        """The rollout's ``rows`` in shuffled minibatches, ``epochs`` times."""
        for _ in range(self.epochs):
            order = torch.randperm(len(rows), generator=self.rows)
            for chosen in torch.split(order, self.batch_size):
                yield rows[chosen.to(rows["action"].device)]
