"""FamO2O (Wang et al. 2023, https://arxiv.org/abs/2310.17966): IQL for every β at once, one chosen for each state."""

from typing import ClassVar

import torch

from o2o_lightning.errors import UserError
from o2o_lightning.methods import method as m
from o2o_lightning.methods.iql import IQL
from o2o_lightning.nn.balanced import BalancedActor
from o2o_lightning.nn.critics import Critics
from o2o_lightning.objectives.awr import advantage_weight, weighted_imitation_loss
from o2o_lightning.objectives.bellman import least
from o2o_lightning.objectives.sac import temperature_loss


class FamO2O(IQL):
    """Imitation with weight min{exp(b·(Q̄ − V)), c} for each b of a range, and a balance that climbs Q̄ by its choice.

    Args:
        lowest, highest: the range of b.
        uniform_balance: the policies learn of any b, as offline; otherwise of those that the balance draws.
        balance_lr: Adam's rate of the balance and of its temperature.
    """

    name: ClassVar[str] = "fam_o2o"
    actor_kind: ClassVar[str | None] = BalancedActor.kind
    lowest: float = 1.0
    highest: float = 5.0
    uniform_balance: bool = True
    balance_lr: float = 3e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.deterministic or not 0.0 <= self.lowest <= self.highest:
            raise UserError(
                "fam_o2o: its policy is a Gaussian, and --model.highest at least --model.lowest, from 0 on."
            )

    def fresh(self, task: m.Task) -> tuple[BalancedActor, Critics]:
        actor = BalancedActor(*task.sizes, self.hidden, self.lowest, self.highest)
        return actor, Critics(*task.sizes, self.hidden, layer_norm=False)

    def build(self, task: m.Task, source: m.Source | None = None) -> None:
        super().build(task, source)
        self.log_balance = torch.nn.Parameter(torch.tensor(0.0))  # of the temperature of the balance's entropy
        if source is not None:
            source.load_scalar(self.log_balance, "log_balance")

    def learners(self) -> m.Learners:
        rates = {"balance": (self.actor.balance, self.balance_lr), "temperature": (self.log_balance, self.balance_lr)}
        return {**super().learners(), "actor": (self.actor.family, self.actor_lr), **rates}

    def noise(self, shape: tuple[int, ...]) -> m.Draws:
        one = (*shape[:-1], 1)
        return {"balance": m.Normal(one), "action": m.Normal(shape), "chosen": m.Normal(one), "any": m.Uniform(one)}

    def update(self, moment: m.Moment) -> m.Updates:
        yield from (self.value_step, self.balance_step, self.policy_step, self.critic_step)
        yield m.Follow(self.target_critic, self.critic, self.polyak)

    def balance_step(self, batch: m.Batch, noise: m.Noise) -> m.Loss:
        """α_b log π_b(b|s) − min Q̄(s, a) of an action a at the drawn b, and the loss of α_b."""
        observation, family = batch["observation"], self.actor.family
        unit, log_prob = self.actor.balance.distribution(observation).sample(noise["balance"])
        mean = torch.tanh(family.body(self.actor.beside(observation, self.actor.scaled(unit)), frozen=True))
        action = (mean + family.log_std().detach().exp() * noise["action"]).clamp(-1.0, 1.0)
        loss = (self.log_balance.detach().exp() * log_prob - least(self.target_critic(observation, action))).mean()
        metrics = {"balance_loss": loss, "balance": self.actor.scaled(unit)}
        return m.Loss(loss + temperature_loss(self.log_balance, log_prob, -0.5), metrics)

    def policy_step(self, batch: m.Batch, noise: m.Noise) -> m.Loss:
        observation = batch["observation"]
        with torch.no_grad():
            drawn: torch.Tensor = self.actor.balance.distribution(observation).sample(noise["chosen"])[0]
            balance = self.actor.scaled(noise["any"] if self.uniform_balance else drawn)
            weight = advantage_weight(balance * self.advantage(batch)[0], 1.0, self.weight_cap)
        misfit = self.actor.family.misfit(self.actor.beside(observation, balance), batch["action"])
        loss = weighted_imitation_loss(weight, misfit)
        return m.Loss(loss, {"actor_loss": loss, "weight": weight})
