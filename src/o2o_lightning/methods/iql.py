"""IQL (Kostrikov et al. 2021, https://arxiv.org/abs/2110.06169): offline, and online as it is."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from o2o_lightning.methods.actor_critic import GOES_ON, ActorCritic
from o2o_lightning.methods.method import Batch, Follow, Learners, Loss, Moment, Noise, Source, Task, Updates
from o2o_lightning.nn.actor import DeterministicActor
from o2o_lightning.nn.critics import Critics, ValueNet
from o2o_lightning.nn.gaussian import GaussianActor
from o2o_lightning.objectives.awr import advantage_weight, expectile_loss, iql_critic_loss, weighted_imitation_loss
from o2o_lightning.objectives.bellman import least, td_target
from o2o_lightning.objectives.schedules import cosine_decay, cosine_restart


class IQL(ActorCritic):
    """An expectile of Q over the data's actions, and a policy that imitates the better ones.

    Args:
        expectile: κ of the value loss; towards 1, V approaches the best action of the data.
        inverse_temperature: β of the imitation weights.
        weight_cap: largest imitation weight.
        actor_lr, critic_lr, value_lr: Adam's rates.
        actor_schedule: the actor's rate falls to 0 along a ``cosine``, is ``constant``, or climbs along the cosine's
            ``restart``, as in CORL online (D75).
        anneal_updates: gradient updates of that cosine; the whole phase by default.
        order: all losses ``together`` at the same networks, or V, policy, Q one after the other (``value_first``, D76).
        discount: γ.
        polyak: rate of the target critics.
        deterministic: a deterministic policy instead of a Gaussian one; PPO needs the Gaussian.
        hidden: widths of all networks.
    """

    name: ClassVar[str] = "iql"
    pays_back: ClassVar[int | None] = 7_000
    makes_critic: ClassVar[bool] = True
    carries_moments: ClassVar[tuple[str, ...]] = GOES_ON
    expectile: float = 0.7
    inverse_temperature: float = 3.0
    weight_cap: float = 100.0
    actor_lr: float = 3e-4
    critic_lr: float = 3e-4
    value_lr: float = 3e-4
    actor_schedule: Literal["cosine", "constant", "restart"] = "cosine"
    anneal_updates: int | None = None
    order: Literal["together", "value_first"] = "together"
    discount: float = 0.99
    polyak: float = 0.005
    deterministic: bool = False
    hidden: Sequence[int] = (256, 256)

    @classmethod
    def policy_family(cls, options: Mapping[str, Any]) -> str | None:
        return DeterministicActor.kind if options.get("deterministic") else cls.actor_kind or GaussianActor.kind

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
        if self.actor_schedule == "constant":
            return {}
        factor = cosine_decay if self.actor_schedule == "cosine" else cosine_restart
        return {"actor": self.actor_lr * factor(moment.update, self.anneal_updates or self.total)}

    def update(self, moment: Moment) -> Updates:
        if self.order == "together":
            yield self.step
        else:
            yield self.value_step
            yield self.policy_step
            yield self.critic_step
        yield Follow(self.target_critic, self.critic, self.polyak)

    def step(self, batch: Batch, noise: Noise) -> Loss:
        """All three losses see V and Q̄ before this step, and none reaches another's parameters: one backward."""
        difference, value = self.advantage(batch)
        parts = self.value_loss(difference, value), self.critic_loss(batch), self.policy_loss(batch, difference)
        metrics = {name: metric for part in parts for name, metric in part.metrics.items()}
        return Loss(parts[0].value + parts[1].value + parts[2].value, metrics)

    def value_step(self, batch: Batch, noise: Noise) -> Loss:
        return self.value_loss(*self.advantage(batch))

    def policy_step(self, batch: Batch, noise: Noise) -> Loss:
        return self.policy_loss(batch, self.advantage(batch)[0])

    def critic_step(self, batch: Batch, noise: Noise) -> Loss:
        return self.critic_loss(batch)

    def advantage(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Of the data's actions, min_j Q̄_j(s, a) − V(s) ``[B]``, and V(s)."""
        with torch.no_grad():
            q_target = least(self.target_critic(batch["observation"], batch["action"]))
        value = self.value(batch["observation"])
        return q_target - value, value

    def value_loss(self, difference: Tensor, value: Tensor) -> Loss:
        """Eq. 5."""
        loss = expectile_loss(difference, self.expectile)
        return Loss(loss, {"value_loss": loss, "value": value})

    def critic_loss(self, batch: Batch) -> Loss:
        """Eq. 6."""
        with torch.no_grad():
            next_value = self.value(batch["next", "observation"])
            target = td_target(batch["reward"], batch["next", "terminated"], next_value, self.discount)
        q = self.critic(batch["observation"], batch["action"])
        loss = iql_critic_loss(q, target)
        return Loss(loss, {"critic_loss": loss, "q": q})

    def policy_loss(self, batch: Batch, difference: Tensor) -> Loss:
        """Eq. 7."""
        weight = advantage_weight(difference, self.inverse_temperature, self.weight_cap)
        loss = weighted_imitation_loss(weight, self.actor.misfit(batch["observation"], batch["action"]))
        return Loss(loss, {"actor_loss": loss, "weight": weight})
