"""ENOTO (Zhao et al. 2023, https://arxiv.org/abs/2306.06871): an ensemble goes online without its offline pessimism."""

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from o2o_lightning.errors import at_least
from o2o_lightning.methods.goes_on import GoesOn
from o2o_lightning.methods.method import Batch, FloatArray, Loss, Noise
from o2o_lightning.objectives.bellman import td_target
from o2o_lightning.objectives.ensembles import all_pairs_least, doubt_weight


class ENOTO(GoesOn):
    """SAC of N critics whose targets are the mean of all pairs' minima, and count the less the critics agree on them.

    Acts by the most promising of several of the policy's actions, mean + λ deviations of their values. No code of the
    authors is known: what their paper leaves open is ours (A22).

    Args:
        candidates, optimism: actions that are drawn in a state, and λ.
        doubt: T of a target's weight σ(−T · deviation) + ½; 0 weighs all alike.
    """

    name: ClassVar[str] = "enoto"
    layer_norm: bool = False
    policy_every: int = 1
    subset: int | None = None
    target_entropy: float = -1.0
    candidates: int = 10
    optimism: float = 1.0
    doubt: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("--model.candidates", self.candidates, 1)
        at_least("--model.doubt", self.doubt, 0)

    def critic_step(self, batch: Batch, noise: Noise) -> Loss:
        with torch.no_grad():
            successor = batch["next", "observation"]
            action, log_prob = self.actor.distribution(successor).sample(noise["target"])
            q = self.target_critic(successor, action)
            value = all_pairs_least(q) - self.log_alpha.exp() * log_prob
            target = td_target(batch["reward"], batch["next", "terminated"], value, self.discount)
            weight = doubt_weight(q.std(0), self.doubt)
        q = self.critic(batch["observation"], batch["action"])
        loss = (weight * (q - target).square()).mean()
        return Loss(loss, {"critic_loss": loss, "q": q, "target": target, "weight": weight})

    def promise(self, observation: Tensor, actions: Tensor) -> Tensor:
        """Mean + λ deviations of the values ``[K]`` of actions ``[K, A]`` at one observation ``[S]``."""
        q: Tensor = self.critic(observation.expand(len(actions), -1), actions)
        return q.mean(0) + self.optimism * q.std(0)

    @torch.no_grad()
    def act(self, observation: FloatArray, generator: np.random.Generator) -> FloatArray:
        actions = self.actor.explore(np.repeat(observation[None], self.candidates, 0), generator)
        device = self.log_alpha.device
        best = self.promise(torch.from_numpy(observation).to(device), torch.from_numpy(actions).to(device)).argmax()
        return actions[int(best)]  # type: ignore[no-any-return]
