"""IQL's step and O2PPO's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal

from textbook.parts import GAMMA, Batch, Learner, adam, descend, mlp


class Gaussian(nn.Module):
    """A Gaussian around a squashed mean."""

    def __init__(self, s: int, a: int, hidden: list[int]) -> None:
        super().__init__()
        self.net, self.log_std = mlp([s, *hidden, a], tanh=True), nn.Parameter(torch.zeros(a))

    def distribution(self, s: Tensor) -> Normal:
        return Normal(self.net(s), self.log_std.clamp(-20.0, 2.0).exp(), validate_args=False)


class IQL(Learner):
    """Implicit Q-learning."""

    def __init__(self, s: int, a: int, hidden: list[int]) -> None:
        super().__init__(s, a, hidden, norm=False)
        self.actor, self.value = Gaussian(s, a, hidden), mlp([s, *hidden, 1])
        self.actor_adam, self.value_adam = adam(self.actor), adam(self.value)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.actor_adam, 1_000_000)

    def update(self, batch: Batch) -> dict[str, float]:
        s, a = batch["s"], batch["a"]
        with torch.no_grad():
            y = batch["r"] + GAMMA * (1 - batch["d"]) * self.value(batch["s2"]).squeeze(-1)
            q = torch.min(self.t1(s, a), self.t2(s, a))
        advantage = q - self.value(s).squeeze(-1)
        value_loss = (torch.abs(0.7 - (advantage < 0).float()) * advantage.pow(2)).mean()
        descend(self.value_adam, value_loss)
        log = self.step_critics(batch, y)
        self.track_critics()
        weight = (3.0 * advantage.detach()).exp().clamp(max=100.0)
        actor_loss = (weight * -self.actor.distribution(s).log_prob(a).sum(-1)).mean()
        descend(self.actor_adam, actor_loss)
        self.schedule.step()
        return {**log, "value_loss": value_loss.item(), "actor_loss": actor_loss.item()}


class PPO:
    """One minibatch of a rollout whose advantages are known."""

    def __init__(self, s: int, a: int, hidden: list[int], value_hidden: list[int]) -> None:
        self.actor, self.value = Gaussian(s, a, hidden), mlp([s, *value_hidden, 1], activation=nn.Tanh)
        self.actor_adam, self.value_adam = adam(self.actor, lr=3e-5), adam(self.value, lr=2e-4)

    def update(self, batch: Batch) -> dict[str, float]:
        policy = self.actor.distribution(batch["s"])
        ratio = (policy.log_prob(batch["a"]).sum(-1) - batch["log_prob"]).exp()
        surrogate = torch.min(ratio * batch["advantage"], ratio.clamp(0.8, 1.2) * batch["advantage"]).mean()
        actor_loss = -surrogate - 0.01 * policy.entropy().sum(-1).mean()
        value_loss = F.mse_loss(self.value(batch["s"]).squeeze(-1), batch["value_target"])
        for net, optimizer, loss in (
            (self.actor, self.actor_adam, actor_loss),
            (self.value, self.value_adam, value_loss),
        ):
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 0.5)
            optimizer.step()
        return {"actor_loss": actor_loss.item(), "value_loss": value_loss.item()}


class PPOReevaluation:
    """V fitted to returns, with V itself behind the end of what was recorded."""

    def __init__(self, s: int, hidden: list[int]) -> None:
        self.value = mlp([s, *hidden, 1], activation=nn.Tanh)
        self.value_adam = adam(self.value, lr=1e-4)

    def update(self, batch: Batch) -> dict[str, float]:
        with torch.no_grad():
            target = batch["return_to_go"] + batch["tail_weight"] * self.value(batch["tail"]).squeeze(-1)
        loss = F.mse_loss(self.value(batch["s"]).squeeze(-1), target)
        descend(self.value_adam, loss)
        return {"value_loss": loss.item()}
