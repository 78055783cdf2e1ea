"""IQL (Kostrikov et al. 2021, https://arxiv.org/abs/2110.06169): offline, and online as it is."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from o2o_lightning.methods.actor_critic import ActorCritic
from o2o_lightning.methods.method import Batch, Follow, Learners, Loss, Moment, Noise, Source, Task, Updates
from o2o_lightning.nn.actor import DeterministicActor
from o2o_lightning.nn.critics import Critics, ValueNet
from o2o_lightning.nn.gaussian import GaussianActor
from o2o_lightning.objectives.awr import advantage_weight, expectile_loss, iql_critic_loss, weighted_imitation_loss
from o2o_lightning.objectives.bellman import least, td_target
from o2o_lightning.objectives.schedules import cosine_decay


class IQL(ActorCritic):
    """An expectile of Q over the data's actions, and a policy that imitates the better ones.

    Args:
        expectile: κ of the value loss; towards 1, V approaches the best action of the data.
        inverse_temperature: β of the imitation weights.
        weight_cap: largest imitation weight.
        actor_lr, critic_lr, value_lr: Adam's rates; the actor's falls to 0 along a cosine.
        anneal_updates: gradient updates of that cosine; the whole phase by default.
        discount: γ.
        polyak: rate of the target critics.
        deterministic: a deterministic policy instead of a Gaussian one; PPO needs the Gaussian.
        hidden: widths of all networks.
    """

    name: ClassVar[str] = "iql"
    pays_back: ClassVar[int | None] = 7_000
    makes_critic: ClassVar[bool] = True
    expectile: float = 0.7
    inverse_temperature: float = 3.0
    weight_cap: float = 100.0
    actor_lr: float = 3e-4
    critic_lr: float = 3e-4
    value_lr: float = 3e-4
    anneal_updates: int | None = None
    discount: float = 0.99
    polyak: float = 0.005
    deterministic: bool = False
    hidden: Sequence[int] = (256, 256)

    @classmethod
    def policy_family(cls, options: Mapping[str, Any]) -> str | None:
        return DeterministicActor.kind if options.get("deterministic") else GaussianActor.kind

    def fresh(self, task: Task) -> tuple[Any, Critics]:
        kind = DeterministicActor if self.deterministic else GaussianActor
        return kind(*task.sizes, self.hidden), Critics(*task.sizes, self.hidden, layer_norm=False)

    def build(self, task: Task, source: Source | None = None) -> None:
        super().build(task, source)
        self.total = task.total
        self.value = (source and source.build_value()) or ValueNet(task.observation_dim, self.hidden)

    def learners(self) -> Learners:
        return {**super().learners(), "value": (self.value, self.value_lr)}

    def rates(self, moment: Moment) -> dict[str, float]:
        return {"actor": self.actor_lr * cosine_decay(moment.update, self.anneal_updates or self.total)}

    def update(self, moment: Moment) -> Updates:
        yield self.step
        yield Follow(self.target_critic, self.critic, self.polyak)

    def step(self, batch: Batch, noise: Noise) -> Loss:
        observation, action = batch["observation"], batch["action"]
        with torch.no_grad():
            q_target = least(self.target_critic(observation, action))
            next_value = self.value(batch["next", "observation"])
            target = td_target(batch["reward"], batch["next", "terminated"], next_value, self.discount)
        value = self.value(observation)
        difference = q_target - value
        value_loss = expectile_loss(difference, self.expectile)
        q = self.critic(observation, action)
        critic_loss = iql_critic_loss(q, target)
        weight = advantage_weight(difference, self.inverse_temperature, self.weight_cap)
        actor_loss = weighted_imitation_loss(weight, self.misfit(observation, action))
        # All three see V and Q̄ before this step, and none reaches another's parameters: one backward, one step.
        return Loss(
            value_loss + critic_loss + actor_loss,
            {
                "value_loss": value_loss,
                "critic_loss": critic_loss,
                "actor_loss": actor_loss,
                "value": value,
                "q": q,
                "weight": weight,
            },
        )

    def misfit(self, observation: Tensor, action: Tensor) -> Tensor:
        """How far the policy is from the data's ``action``, ``[B]``."""
        if isinstance(self.actor, GaussianActor):
            return -self.actor.log_prob(observation, action)
        return (self.actor.mode(observation) - action).square().sum(-1)  # type: ignore[no-any-return]
