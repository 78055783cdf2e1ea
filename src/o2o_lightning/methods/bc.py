"""Behaviour cloning of the dataset, or of its best episodes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from o2o_lightning.errors import UserError, at_least
from o2o_lightning.methods.method import (
    Batch,
    Draws,
    Learners,
    Loss,
    Method,
    Moment,
    Noise,
    Normal,
    Source,
    Task,
    Updates,
)
from o2o_lightning.nn.actor import StochasticActor
from o2o_lightning.nn.actors import fresh_actor
from o2o_lightning.nn.targets import frozen_copy
from o2o_lightning.objectives.imitation import cloning_loss, entropy_temperature_loss, imitation_loss

Family = Literal["deterministic", "squashed_gaussian", "gaussian", "gaussian_head"]


class Imitation(Method):
    """A policy fitted to actions: mean square into a deterministic family, Eq. 52 into a Gaussian one.

    Args:
        family: family of the policy.
        hidden: widths; the family's own by default.
        temperature: λ_H of Eq. 52 at the beginning, in a Gaussian family; learned towards an entropy of −A.
        temperature_lr: Adam's rate for its logarithm.
    """

    labels_from: ClassVar[str]  # the column of a batch that holds the actions to imitate
    family: Family = "deterministic"
    hidden: Sequence[int] | None = None
    temperature: float = 0.1
    temperature_lr: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("--model.temperature", self.temperature, 1e-6)

    def build(self, task: Task, source: Source | None = None) -> None:
        self.actor = fresh_actor(self.family, *task.sizes, self.hidden)
        self.offline_actor = frozen_copy(self.actor)
        learns = self.family != "deterministic"
        self.log_temperature = nn.Parameter(torch.tensor(math.log(self.temperature)), requires_grad=learns)

    def fitted(self, rate: float) -> Learners:
        """What learns, the policy at ``rate``."""
        actor: Learners = {"actor": (self.actor, rate)}
        if isinstance(self.actor, StochasticActor):
            actor["temperature"] = (self.log_temperature, self.temperature_lr)
        return actor

    @property
    def target_entropy(self) -> float:
        """H̄ = −A."""
        return -float(self.actor.spec.action_dim)

    def noise(self, shape: tuple[int, ...]) -> Draws:
        return {"entropy": Normal(shape)} if isinstance(self.actor, StochasticActor) else {}

    def update(self, moment: Moment) -> Updates:
        yield self.density_step if isinstance(self.actor, StochasticActor) else self.distance_step

    def distance_step(self, batch: Batch, noise: Noise) -> Loss:
        loss = imitation_loss(self.actor.mode(batch["observation"]), batch[self.labels_from])
        return Loss(loss, {"imitation_loss": loss})

    def density_step(self, batch: Batch, noise: Noise) -> Loss:
        raise NotImplementedError(f"{type(self).__name__}.density_step")

    def likelihood(self, observation: Tensor, action: Tensor, noise: Tensor) -> tuple[Loss, Tensor]:
        """Eq. 52 at ``action`` ``[B, A]`` with its temperature's loss, and the policy's modes ``[B, A]``."""
        log_prob, entropy, mode = self.actor.density(observation, action, noise)  # type: ignore[operator]
        temperature = self.log_temperature.exp()
        loss = cloning_loss(log_prob, entropy, temperature.detach())
        temperature_loss = entropy_temperature_loss(self.log_temperature, entropy, self.target_entropy)
        metrics = {"imitation_loss": loss, "log_prob": log_prob, "entropy": entropy, "temperature": temperature}
        # the temperature's loss reaches nothing else, and nothing else the temperature: one backward
        return Loss(loss + temperature_loss, metrics), mode

    @classmethod
    def policy_family(cls, options: Mapping[str, Any]) -> str | None:
        return str(options.get("family", cls.family))


class BC(Imitation):
    """Behaviour cloning of the data's actions; it hands on the policy alone, and leaves the critic to re-evaluation.

    Args:
        family: family of the policy. The online algorithm's own by default, so that nothing needs to be cloned later.
        fraction: share of the complete episodes, those of the highest return, to learn from; 1 for all of the data.
        actor_lr: Adam's rate.
    """

    name: ClassVar[str] = "bc"
    labels_from: ClassVar[str] = "action"
    fraction: float = 1.0
    actor_lr: float = 3e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.fraction <= 1.0:
            raise UserError(f"--model.fraction {self.fraction:g}: a share above 0, and at most 1, is needed.")

    @property
    def label(self) -> str:
        return self.name if self.fraction == 1.0 else f"{self.name}{100 * self.fraction:g}"

    def learners(self) -> Learners:
        return self.fitted(self.actor_lr)

    def density_step(self, batch: Batch, noise: Noise) -> Loss:
        return self.likelihood(batch["observation"], batch["action"], noise["entropy"])[0]
