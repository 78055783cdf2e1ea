"""Online Decision Transformer (Zheng et al. 2022, https://arxiv.org/abs/2202.05607), its offline part."""

import math
from typing import Any, ClassVar

import torch
from torch import nn

from o2o_lightning.methods.dt import SequenceMethod, window
from o2o_lightning.methods.method import Batch, Draws, Learners, Loss, Noise, Normal, Source, Task
from o2o_lightning.nn.decision_transformer import OnlineDecisionTransformer, SequencePolicy
from o2o_lightning.nn.optimizers import LAMB
from o2o_lightning.objectives.imitation import sequence_likelihood_loss, sequence_temperature_loss

DATA_LIMIT = 1.0 - 1e-6  # the data's actions are clipped to it: atanh(±1) is infinite


class ODT(SequenceMethod):
    """The likelihood of the data's actions, with an entropy held at −A.

    Args:
        lr, weight_decay: of LAMB.
        temperature: weight of the entropy at the beginning; temperature_lr: Adam's rate for its logarithm.
    """

    name: ClassVar[str] = "odt"
    actor_kind: ClassVar[str | None] = OnlineDecisionTransformer.kind
    transformer: ClassVar[type[SequencePolicy]] = OnlineDecisionTransformer
    lr: float = 1e-4
    weight_decay: float = 5e-4
    acting_context: int = 5
    width: int = 512
    layers: int = 4
    heads: int = 4
    temperature: float = 0.1
    temperature_lr: float = 1e-4

    def build(self, task: Task, source: Source | None = None) -> None:
        super().build(task, source)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(self.temperature)))

    def learners(self) -> Learners:
        return {**super().learners(), "temperature": (self.log_temperature, self.temperature_lr)}

    def optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        # a group without decay takes Adam's step, which is what the temperature has
        decay = {"actor": self.weight_decay, "temperature": 0.0}
        return LAMB([{**group, "weight_decay": decay[group["name"]]} for group in groups])

    def noise(self, shape: tuple[int, ...]) -> Draws:
        return {"entropy": Normal(shape)}

    def step(self, batch: Batch, noise: Noise) -> Loss:
        policy = self.actor.distribution(window(batch))  # type: ignore[operator]
        log_prob = policy.log_prob(batch["action"], DATA_LIMIT)
        entropy = -policy.sample(noise["entropy"])[1]
        temperature, real = self.log_temperature.exp(), batch["real"]
        loss = sequence_likelihood_loss(log_prob, entropy, temperature.detach(), real)
        target_entropy = -float(self.actor.spec.action_dim)
        temperature_loss = sequence_temperature_loss(self.log_temperature, entropy, real, target_entropy)
        # the temperature's loss reaches nothing else, and nothing else the temperature: one backward
        return Loss(
            loss + temperature_loss,
            {
                "sequence_loss": loss,
                "log_prob": log_prob,
                "entropy": entropy,
                "temperature": temperature,
                "return_to_go": batch["return_to_go"],
            },
        )
