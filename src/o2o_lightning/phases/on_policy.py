"""The online phase of a method that learns from rounds of its own rollouts."""

from typing import ClassVar, cast

import numpy as np
from torch import Tensor

from o2o_lightning.checkpoint.handover import POLICIES
from o2o_lightning.data.rollout import RolloutData
from o2o_lightning.methods.method import Task
from o2o_lightning.methods.o2 import ppo as o2ppo
from o2o_lightning.methods.ppo import PPO
from o2o_lightning.phases.descent import Draw
from o2o_lightning.phases.online import FloatArray, Online


class OnPolicy(Online):
    """As :class:`~o2o_lightning.phases.online.Online`, a rollout at a time."""

    accepts: ClassVar[tuple[str, ...]] = ("reevaluate", *POLICIES)

    def train_chunk(self, chunk: int) -> None:
        """``chunk`` environment steps, side by side; after each full rollout the updates from it."""
        data, method = self.rollouts, cast(PPO, self.method)
        for _ in range(chunk // data.stride):
            for interaction in data.interactions:
                interaction.begin(self.explore)
            for interaction in data.interactions:
                interaction.end()
            for interaction in data.interactions:
                self.on_env_step(self.ranks.count)
                if self._gated:
                    self.gate.ended(interaction)
            if data.full:
                rows = method.begin_rollout(data.take(self.device), self.env_steps)
                self.make(Draw(batch) for batch in data.minibatches(rows))
                self.make_sure()
                self._log_rollout(method.end_rollout(rows))

    def explore(self, observation: FloatArray) -> FloatArray:
        return self.method.act(self.normalizer.numpy(observation), self.rollouts.generator)

    @property
    def rollouts(self) -> RolloutData:
        """The DataModule, which collects rollouts."""
        return cast(RolloutData, self.data)

    @property
    def planned_updates(self) -> int:
        return int(self.trainer.max_steps)

    def task(self) -> Task:
        return super().task()._replace(environments=self.rollouts.stride, rollout=self.rollouts.rollout)

    def status(self) -> list[str]:
        weight = self._auxiliary_weight()
        parts = [] if weight is None else [f"β {weight:.2f}"]
        return [*parts, f"KL {self.display['kl']:.2g}"] if "kl" in self.display else parts

    def _auxiliary_weight(self) -> float | None:
        method = self.method
        if isinstance(method, o2ppo.Online) and method.auxiliary_advantage:
            return method.auxiliary_weight(self.env_steps)
        return None

    def _log_rollout(self, metrics: dict[str, Tensor]) -> None:
        row = self.ranks.mean_row({name: float(value) for name, value in metrics.items()})
        returns = [i.last_return for i in self.rollouts.interactions if i.last_return is not None]
        if returns:
            row["last_episode_return"] = float(np.mean(returns))
        self.log_now({**row, "auxiliary_weight": self._auxiliary_weight() or 0.0})
