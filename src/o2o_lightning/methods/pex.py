"""PEX (Zhang et al. 2023, https://arxiv.org/abs/2302.00935): the offline policy stays, a new one learns beside it."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from o2o_lightning.methods.iql import IQL
from o2o_lightning.methods.method import (
    Batch,
    Draws,
    FloatArray,
    Follow,
    Loss,
    Moment,
    Noise,
    Normal,
    Source,
    Task,
    Uniform,
    Updates,
)
from o2o_lightning.nn.actor import Actor
from o2o_lightning.nn.critics import ValueNet
from o2o_lightning.nn.gaussian import GaussianActor
from o2o_lightning.nn.policy_set import PolicySet
from o2o_lightning.nn.targets import frozen_copy
from o2o_lightning.objectives.awr import advantage_weight, weighted_imitation_loss
from o2o_lightning.objectives.bellman import least

LOG_STD_BOUNDS = (-5.0, 2.0)


class PEX(IQL):
    """In each state π_β's mode or π_θ's sample acts, by a softmax of their values (Eq. 5); the rest is IQL's rule.

    Learns: π_θ, from random weights, V and Q. Frozen: π_β, a policy of any family. Evaluates: the better one's mode.

    Args:
        selection: κ of the softmax; towards infinity the better action is taken.
        hidden: widths of π_θ, and of V where the checkpoint has none.
    """

    name: ClassVar[str] = "pex"
    carries_moments: ClassVar[tuple[str, ...]] = ()
    needs_critic: ClassVar[bool] = True
    needs_source: ClassVar[bool] = True
    selection: float = 10.0
    inverse_temperature: float = 10.0
    expectile: float = 0.9
    actor_schedule: Literal["cosine", "constant", "restart"] = "constant"

    @classmethod
    def policy_family(cls, options: Mapping[str, Any]) -> str | None:
        return None

    def build(self, task: Task, source: Source | None = None) -> None:
        assert source is not None
        self.total = task.total
        self.critic = source.build_critic()
        self.target_critic = frozen_copy(self.critic)
        self.take_targets(source)
        self.value = source.build_value() or ValueNet(task.observation_dim, self.hidden)
        base, learner = frozen_copy(source.build_actor()), GaussianActor(*task.sizes, self.hidden)
        learner.log_std_bounds = LOG_STD_BOUNDS
        self.actor = PolicySet([base, learner], self.critic)

    @property
    def offline_actor(self) -> Actor:
        """π_β."""
        return self.actor.members[0]  # type: ignore[no-any-return]

    @property
    def learner(self) -> GaussianActor:
        """π_θ."""
        return self.actor.members[1]  # type: ignore[no-any-return]

    def learners(self) -> dict[str, Any]:
        rates = {"actor": self.actor_lr, "critic": self.critic_lr, "value": self.value_lr}
        return {name: (getattr(self, "learner" if name == "actor" else name), rate) for name, rate in rates.items()}

    def noise(self, shape: tuple[int, ...]) -> Draws:
        return {"policy": Normal(shape), "choice": Uniform(shape[:-1])}

    def update(self, moment: Moment) -> Updates:
        yield self.value_step
        yield self.critic_step
        yield Follow(self.target_critic, self.critic, self.polyak)
        yield self.policy_step

    def policy_step(self, batch: Batch, noise: Noise) -> Loss:
        """Imitation of the composite policy's own action, by IQL's weight of it, Q̄ and V having moved already."""
        observation = batch["observation"]
        with torch.no_grad():
            base = self.offline_actor.mode(observation)
            sample = self.learner.sampled(observation, noise["policy"])
            chosen = 0.5 * (noise["choice"] + 1.0) < self.preference(observation, base, sample)
            action = torch.where(chosen.unsqueeze(-1), sample, base)
            advantage = least(self.target_critic(observation, action)) - self.value(observation)
        weight = advantage_weight(advantage, self.inverse_temperature, self.weight_cap)
        log_prob = self.learner.log_prob(observation, action)
        loss = weighted_imitation_loss(weight, -log_prob)
        return Loss(loss, {"actor_loss": loss, "weight": weight, "learner_share": chosen.float()})

    def preference(self, observation: Tensor, base: Tensor, sample: Tensor) -> Tensor:
        r"""Probability :math:`\sigma(\kappa (Q_\theta - Q_\beta))` ``[B]`` of π_θ's action, by the least critic."""
        ours, theirs = self.actor.values(observation, (sample, base))
        return torch.sigmoid(self.selection * (ours - theirs))

    @torch.no_grad()
    def act(self, observation: FloatArray, generator: np.random.Generator) -> FloatArray:
        actions = self.offline_actor.act(observation), self.learner.explore(observation, generator)
        device = next(self.learner.parameters()).device
        rows = [torch.from_numpy(np.asarray(part, np.float32)).to(device)[None] for part in (observation, *actions)]
        return actions[int(generator.uniform() < float(self.preference(*rows)))]
