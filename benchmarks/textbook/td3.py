"""O2TD3's steps and TD3+BC's."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textbook.parts import GAMMA, Batch, Learner, adam, descend, mlp, track


class TD3Base(Learner):
    """A deterministic policy with a target, and π_off."""

    def __init__(self, s: int, a: int, hidden: list[int], norm: bool = True) -> None:
        super().__init__(s, a, hidden, norm)
        self.actor = mlp([s, *hidden, a], tanh=True)
        self.target_actor, self.offline = copy.deepcopy(self.actor), copy.deepcopy(self.actor)
        self.actor_adam = adam(self.actor, lr=1e-4)

    def smoothed(self, a: Tensor) -> Tensor:
        noise = (torch.randn_like(a) * 0.2).clamp(-0.5, 0.5)
        return (a + noise).clamp(-1.0, 1.0)

    def bootstrap(self, batch: Batch, actor: nn.Module) -> Tensor:
        a2 = self.smoothed(actor(batch["s2"]))
        return torch.min(self.t1(batch["s2"], a2), self.t2(batch["s2"], a2))


class TD3(TD3Base):
    """Constrained fine-tuning."""

    def __init__(self, s: int, a: int, hidden: list[int]) -> None:
        super().__init__(s, a, hidden)
        self.reference = copy.deepcopy(self.actor)
        self.log_lambda = torch.tensor(0.0, requires_grad=True)
        self.lambda_adam = adam(self.log_lambda, lr=5e-5)
        self.threshold = 0.0025

    def update(self, batch: Batch) -> dict[str, float]:
        self.updates += 1
        s, multiplier = batch["s"], self.log_lambda.exp().detach()
        with torch.no_grad():
            penalty = (self.actor(batch["s2"]) - self.reference(batch["s2"])).pow(2).mean(-1)
            value = self.bootstrap(batch, self.target_actor) - multiplier * penalty
            y = batch["r"] + GAMMA * (1 - batch["d"]) * value
        log = self.step_critics(batch, y)
        if self.updates % 2 == 0:
            a = self.actor(s)
            q = self.q1(s, a)
            divergence = (a - self.reference(s)).pow(2)
            actor_loss = -q.mean() / q.abs().mean().detach() + multiplier * divergence.mean()
            slack = self.threshold - divergence.detach()
            lambda_loss = (self.log_lambda.exp() * torch.where(slack > 0, 0.3 * slack, 0.7 * slack)).mean()
            descend(self.actor_adam, actor_loss)
            descend(self.lambda_adam, lambda_loss)
            log |= {"actor_loss": actor_loss.item(), "divergence": divergence.mean().item()}
            log["lambda"] = multiplier.item()
            self.track_critics()
            track(self.target_actor, self.actor)
        return log


class TD3Reevaluation(TD3Base):
    """Fitted Q-evaluation of π_off."""

    def update(self, batch: Batch) -> dict[str, float]:
        with torch.no_grad():
            y = batch["r"] + GAMMA * (1 - batch["d"]) * self.bootstrap(batch, self.offline)
        log = self.step_critics(batch, y)
        self.track_critics()
        return log


class TD3Alignment(TD3Base):
    """Value alignment."""

    def update(self, batch: Batch) -> dict[str, float]:
        s = batch["s"]
        with torch.no_grad():
            anchor, a = self.offline(s), self.smoothed(self.actor(s))
            anchor_q = torch.min(self.t1(s, anchor), self.t2(s, anchor))
            factor = 1 + (a - anchor).pow(2).mean(-1).sqrt().clamp(max=0.2).pow(2)
            calibrated = torch.where(anchor_q >= 0, anchor_q / factor, anchor_q * factor)
        losses = []
        for q, t, optimizer in ((self.q1, self.t1, self.q1_adam), (self.q2, self.t2, self.q2_adam)):
            with torch.no_grad():
                target = torch.min(calibrated, t(s, a))
            loss = F.mse_loss(q(s, a), target) + F.mse_loss(q(s, anchor), anchor_q)
            descend(optimizer, loss)
            losses.append(loss)
        actor_loss = -self.q1(s, self.actor(s)).mean()
        descend(self.actor_adam, actor_loss)
        return {"q1_loss": losses[0].item(), "q2_loss": losses[1].item(), "actor_loss": actor_loss.item(),
                "target": target.mean().item()}  # fmt: skip


class TD3BC(TD3Base):
    """TD3 with imitation."""

    def __init__(self, s: int, a: int, hidden: list[int]) -> None:
        super().__init__(s, a, hidden, norm=False)

    def update(self, batch: Batch) -> dict[str, float]:
        self.updates += 1
        with torch.no_grad():
            y = batch["r"] + GAMMA * (1 - batch["d"]) * self.bootstrap(batch, self.target_actor)
        log = self.step_critics(batch, y)
        if self.updates % 2 == 0:
            a = self.actor(batch["s"])
            q = self.q1(batch["s"], a)
            actor_loss = -2.5 / q.abs().mean().detach() * q.mean() + F.mse_loss(a, batch["a"])
            descend(self.actor_adam, actor_loss)
            log["actor_loss"] = actor_loss.item()
            self.track_critics()
            track(self.target_actor, self.actor)
        return log
