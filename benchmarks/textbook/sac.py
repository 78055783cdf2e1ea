"""O2SAC's steps and CQL's."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from textbook.parts import GAMMA, Batch, Learner, TanhGaussian, adam, descend


class SACBase(Learner):
    """A squashed Gaussian policy, π_off and the temperature."""

    def __init__(self, s: int, a: int, hidden: list[int], norm: bool = True) -> None:
        super().__init__(s, a, hidden, norm)
        self.actor = TanhGaussian(s, a, hidden)
        self.offline = copy.deepcopy(self.actor)
        self.actor_adam = adam(self.actor, lr=1e-4)
        self.log_alpha = torch.tensor(math.log(0.2), requires_grad=True)
        self.alpha_adam = adam(self.log_alpha)
        self.target_entropy = -float(a)


class SAC(SACBase):
    """Constrained fine-tuning."""

    def __init__(self, s: int, a: int, hidden: list[int]) -> None:
        super().__init__(s, a, hidden)
        self.reference = copy.deepcopy(self.actor)
        self.log_lambda = torch.tensor(0.0, requires_grad=True)
        self.lambda_adam = adam(self.log_lambda, lr=5e-5)
        self.threshold = 0.125

    def divergence(self, s: Tensor, a: Tensor, log_prob: Tensor) -> Tensor:
        return log_prob - self.reference.log_prob(s, a).clamp(min=-50)

    def update(self, batch: Batch) -> dict[str, float]:
        s, alpha, multiplier = batch["s"], self.log_alpha.exp().detach(), self.log_lambda.exp().detach()
        with torch.no_grad():
            a2, log_prob2 = self.actor(batch["s2"])
            value = torch.min(self.t1(batch["s2"], a2), self.t2(batch["s2"], a2)) - alpha * log_prob2
            value = value - multiplier * self.divergence(batch["s2"], a2, log_prob2)
            y = batch["r"] + GAMMA * (1 - batch["d"]) * value
        a, log_prob = self.actor(s)
        alpha_loss = -(self.log_alpha * (log_prob + self.target_entropy).detach()).mean()
        divergence = self.divergence(s, a, log_prob)
        q = torch.min(self.q1(s, a), self.q2(s, a))
        actor_loss = (alpha * log_prob - q + multiplier * divergence).mean()
        slack = self.threshold - divergence.detach()
        lambda_loss = (self.log_lambda.exp() * torch.where(slack > 0, 0.3 * slack, 0.7 * slack)).mean()
        descend(self.alpha_adam, alpha_loss)
        descend(self.actor_adam, actor_loss)
        descend(self.lambda_adam, lambda_loss)
        log = self.step_critics(batch, y)
        self.track_critics()
        return {**log, "actor_loss": actor_loss.item(), "alpha": alpha.item(), "lambda": multiplier.item(),
                "divergence": divergence.mean().item(), "entropy": -log_prob.mean().item()}  # fmt: skip


class SACReevaluation(SACBase):
    """Fitted Q-evaluation of π_off."""

    def update(self, batch: Batch) -> dict[str, float]:
        with torch.no_grad():
            a2, log_prob = self.offline(batch["s2"])
            value = torch.min(self.t1(batch["s2"], a2), self.t2(batch["s2"], a2)) - self.log_alpha.exp() * log_prob
            y = batch["r"] + GAMMA * (1 - batch["d"]) * value
        log = self.step_critics(batch, y)
        self.track_critics()
        return log


class SACAlignment(SACBase):
    """Value alignment."""

    def update(self, batch: Batch) -> dict[str, float]:
        s, alpha = batch["s"], self.log_alpha.exp().detach()
        with torch.no_grad():
            anchor, (a, _) = self.offline.mode(s), self.actor(s)
            anchor_q = torch.min(self.t1(s, anchor), self.t2(s, anchor))
            log_ratio = self.offline.log_prob(s, anchor) - self.offline.log_prob(s, a).clamp(min=-50)
            target = torch.min(anchor_q - alpha * log_ratio, torch.min(self.t1(s, a), self.t2(s, a)))
        losses = []
        for q, optimizer in ((self.q1, self.q1_adam), (self.q2, self.q2_adam)):
            loss = F.mse_loss(q(s, a), target) + F.mse_loss(q(s, anchor), anchor_q)
            descend(optimizer, loss)
            losses.append(loss)
        a, log_prob = self.actor(s)
        actor_loss = (alpha * log_prob - torch.min(self.q1(s, a), self.q2(s, a))).mean()
        descend(self.actor_adam, actor_loss)
        return {"q1_loss": losses[0].item(), "q2_loss": losses[1].item(), "actor_loss": actor_loss.item(),
                "target": target.mean().item(), "entropy": -log_prob.mean().item()}  # fmt: skip


class CQL(SACBase):
    """Conservative Q-learning with ten actions of each source."""

    def __init__(self, s: int, a: int, hidden: list[int], samples: int = 10, weight: float = 10.0) -> None:
        super().__init__(s, a, hidden, norm=False)
        self.samples, self.weight = samples, weight

    def update(self, batch: Batch) -> dict[str, float]:
        s, s2, alpha = batch["s"], batch["s2"], self.log_alpha.exp().detach()
        a, log_prob = self.actor(s)
        alpha_loss = -(self.log_alpha * (log_prob + self.target_entropy).detach()).mean()
        actor_loss = (alpha * log_prob - torch.min(self.q1(s, a), self.q2(s, a))).mean()
        with torch.no_grad():
            a2, _ = self.actor(s2)
            y = batch["r"] + GAMMA * (1 - batch["d"]) * torch.min(self.t1(s2, a2), self.t2(s2, a2))
        uniform = batch["a"].new_empty(len(s), self.samples, batch["a"].shape[1]).uniform_(-1, 1)
        here, log_here = (x.detach() for x in self.actor(s, self.samples))
        there, log_there = (x.detach() for x in self.actor(s2, self.samples))
        losses, gaps = [], []
        for q in (self.q1, self.q2):
            data = q(s, batch["a"])
            others = [q(s, uniform) + uniform.shape[-1] * math.log(2.0), q(s, there) - log_there, q(s, here) - log_here]
            gaps.append((torch.logsumexp(torch.cat(others, dim=1), dim=1) - data).mean())
            losses.append(F.mse_loss(data, y) + self.weight * gaps[-1])
        descend(self.alpha_adam, alpha_loss)
        descend(self.actor_adam, actor_loss)
        descend(self.q1_adam, losses[0])
        descend(self.q2_adam, losses[1])
        self.track_critics()
        return {"q1_loss": losses[0].item(), "q2_loss": losses[1].item(), "gap1": gaps[0].item(),
                "gap2": gaps[1].item(), "actor_loss": actor_loss.item(), "alpha": alpha.item()}  # fmt: skip
