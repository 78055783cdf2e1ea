"""AWAC (Nair et al. 2020, https://arxiv.org/abs/2006.09359) as CORL has it."""

from collections.abc import Sequence
from typing import ClassVar

import torch

from o2o_lightning.errors import at_least
from o2o_lightning.methods.actor_critic import GOES_ON, ActorCritic
from o2o_lightning.methods.method import Batch, Draws, Follow, Loss, Moment, Noise, Normal, Task, Updates
from o2o_lightning.nn.critics import Critics
from o2o_lightning.nn.gaussian import GaussianActor
from o2o_lightning.nn.mlp import uniform_
from o2o_lightning.objectives.awr import awac_policy_loss, awac_weight, sampled_advantage
from o2o_lightning.objectives.bellman import critic_loss, least, td_target


class AWAC(ActorCritic):
    """Critics of the policy itself, which imitates the data's actions the better they are.

    Args:
        temperature: λ of the imitation weights; towards 0, only actions better than the policy's own count.
        weight_cap: largest imitation weight.
        actor_lr, critic_lr: Adam's rates.
        discount, polyak: γ, and the target critics' rate, applied at every update.
        hidden: widths of the actor and the critics.
    """

    name: ClassVar[str] = "awac"
    actor_kind: ClassVar[str | None] = GaussianActor.kind
    makes_critic: ClassVar[bool] = True
    carries_moments: ClassVar[tuple[str, ...]] = GOES_ON
    temperature: float = 0.3333
    weight_cap: float = 100.0
    actor_lr: float = 3e-4
    critic_lr: float = 3e-4
    discount: float = 0.99
    polyak: float = 0.005
    hidden: Sequence[int] = (256, 256, 256)

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("--model.temperature", self.temperature, 1e-6)

    def fresh(self, task: Task) -> tuple[GaussianActor, Critics]:
        # orthogonal layers of gain 1 would start a mean that no tanh bounds far outside ±1
        actor = GaussianActor(*task.sizes, self.hidden, mean="linear")
        critic = Critics(*task.sizes, self.hidden, layer_norm=False)
        uniform_(actor)
        uniform_(critic)
        return actor, critic

    def noise(self, shape: tuple[int, ...]) -> Draws:
        return {"target": Normal(shape), "policy": Normal(shape)}

    def update(self, moment: Moment) -> Updates:
        yield self.critic_step
        yield self.policy_step
        yield Follow(self.target_critic, self.critic, self.polyak)

    def critic_step(self, batch: Batch, noise: Noise) -> Loss:
        next_observation = batch["next", "observation"]
        with torch.no_grad():
            next_action = self.actor.sampled(next_observation, noise["target"])
            next_value = least(self.target_critic(next_observation, next_action))
            target = td_target(batch["reward"], batch["next", "terminated"], next_value, self.discount)
        q = self.critic(batch["observation"], batch["action"])
        loss = critic_loss(q, target)
        return Loss(loss, {"critic_loss": loss, "q": q, "target": target})

    def policy_step(self, batch: Batch, noise: Noise) -> Loss:
        observation, action = batch["observation"], batch["action"]
        with torch.no_grad():
            sampled = self.actor.sampled(observation, noise["policy"])
            both = self.critic(torch.cat((observation, observation)), torch.cat((action, sampled)))
            weight = awac_weight(sampled_advantage(*both.chunk(2, -1)), self.temperature, self.weight_cap)
        log_prob = self.actor.log_prob(observation, action)
        loss = awac_policy_loss(weight, log_prob)
        return Loss(loss, {"actor_loss": loss, "weight": weight, "log_prob": log_prob})
