"""The same updates as a textbook, or a single-file library, would write them: what the package is timed against.

One ``nn.Sequential`` a network and one default ``torch.optim.Adam`` for each, a separate forward pass for each term,
autograd through critics and reference policy in the policy's loss, target networks moved parameter by parameter, one
batch sampled from tensors before each update, and its losses read as numbers after it. Nothing is done badly on
purpose: targets are formed under ``no_grad``, and the mathematics is the package's, defaults included.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

Batch = dict[str, Tensor]
GAMMA, RATE = 0.99, 0.005


class Replay:
    """Transitions as tensors ``[N, …]``, uniform sampling with replacement."""

    def __init__(self, columns: dict[str, Tensor], batch_size: int) -> None:
        self.columns, self.batch_size = columns, batch_size
        self.size = len(columns["r"])

    def sample(self) -> Batch:
        rows = torch.randint(0, self.size, (self.batch_size,))
        return {name: column[rows] for name, column in self.columns.items()}


class Mixed:
    """Half of each batch from one replay, half from the other."""

    def __init__(self, online: Replay, offline: Replay) -> None:
        self.parts = (online, offline)

    def sample(self) -> Batch:
        online, offline = (part.sample() for part in self.parts)
        return {name: torch.cat([online[name], offline[name]]) for name in online}


def mlp(sizes: list[int], norm: bool = False, tanh: bool = False, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear → LayerNorm (if asked) → activation, …, Linear."""
    layers: list[nn.Module] = []
    for i in range(len(sizes) - 2):
        layers += [nn.Linear(sizes[i], sizes[i + 1]), *([nn.LayerNorm(sizes[i + 1])] if norm else []), activation()]
    layers.append(nn.Linear(sizes[-2], sizes[-1]))
    return nn.Sequential(*layers, *([nn.Tanh()] if tanh else []))


class Critic(nn.Module):
    def __init__(self, s: int, a: int, hidden: list[int], norm: bool) -> None:
        super().__init__()
        self.net = mlp([s + a, *hidden, 1], norm)

    def forward(self, s: Tensor, a: Tensor) -> Tensor:
        if s.ndim < a.ndim:  # several actions a state
            s = s.unsqueeze(1).expand(-1, a.shape[1], -1)
        return self.net(torch.cat([s, a], dim=-1)).squeeze(-1)


class TanhGaussian(nn.Module):
    def __init__(self, s: int, a: int, hidden: list[int]) -> None:
        super().__init__()
        self.net = mlp([s, *hidden, 2 * a])
        self.scale, self.offset = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(-1.0))

    def distribution(self, s: Tensor, repeat: int | None = None) -> TransformedDistribution:
        if repeat is not None:
            s = s.unsqueeze(1).repeat(1, repeat, 1)
        mean, log_std = self.net(s).chunk(2, dim=-1)
        std = torch.clamp(self.scale * log_std + self.offset, -20.0, 2.0).exp()
        tanh = TanhTransform(cache_size=1)
        return TransformedDistribution(Normal(mean, std, validate_args=False), tanh, validate_args=False)

    def forward(self, s: Tensor, repeat: int | None = None) -> tuple[Tensor, Tensor]:
        policy = self.distribution(s, repeat)
        action = policy.rsample()
        return action, policy.log_prob(action).sum(-1)

    def log_prob(self, s: Tensor, a: Tensor) -> Tensor:
        return self.distribution(s).log_prob(a.clamp(-0.9999, 0.9999)).sum(-1)

    def mode(self, s: Tensor) -> Tensor:
        return torch.tanh(self.net(s).chunk(2, dim=-1)[0]).clamp(-0.9999, 0.9999)


def track(target: nn.Module, source: nn.Module) -> None:
    for kept, new in zip(target.parameters(), source.parameters(), strict=True):
        kept.data.copy_(RATE * new.data + (1 - RATE) * kept.data)


def descend(optimizer: torch.optim.Optimizer, loss: Tensor, keep: bool = False) -> None:
    optimizer.zero_grad()
    loss.backward(retain_graph=keep)
    optimizer.step()


def adam(*parts: Any, lr: float = 3e-4) -> torch.optim.Adam:
    return torch.optim.Adam([p for part in parts for p in (part.parameters() if isinstance(part, nn.Module) else [part])], lr)


class Learner:
    """Two critics with targets; a subclass adds the policy and :meth:`update`."""

    def __init__(self, s: int, a: int, hidden: list[int], norm: bool) -> None:
        self.q1, self.q2 = Critic(s, a, hidden, norm), Critic(s, a, hidden, norm)
        self.t1, self.t2 = copy.deepcopy(self.q1), copy.deepcopy(self.q2)
        self.q1_adam, self.q2_adam = adam(self.q1), adam(self.q2)
        self.updates = 0

    def step_critics(self, batch: Batch, y: Tensor) -> dict[str, float]:
        q1, q2 = self.q1(batch["s"], batch["a"]), self.q2(batch["s"], batch["a"])
        loss1, loss2 = F.mse_loss(q1, y), F.mse_loss(q2, y)
        descend(self.q1_adam, loss1)
        descend(self.q2_adam, loss2)
        return {"q1_loss": loss1.item(), "q2_loss": loss2.item(), "q": q1.mean().item(), "target": y.mean().item()}

    def track_critics(self) -> None:
        track(self.t1, self.q1)
        track(self.t2, self.q2)


# ---- O2SAC -------------------------------------------------------------------------------------------------------


class SACBase(Learner):
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
    def update(self, batch: Batch) -> dict[str, float]:
        with torch.no_grad():
            a2, log_prob = self.offline(batch["s2"])
            value = torch.min(self.t1(batch["s2"], a2), self.t2(batch["s2"], a2)) - self.log_alpha.exp() * log_prob
            y = batch["r"] + GAMMA * (1 - batch["d"]) * value
        log = self.step_critics(batch, y)
        self.track_critics()
        return log


class SACAlignment(SACBase):
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


# ---- O2TD3 -------------------------------------------------------------------------------------------------------


class TD3Base(Learner):
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
            y = batch["r"] + GAMMA * (1 - batch["d"]) * (self.bootstrap(batch, self.target_actor) - multiplier * penalty)
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
            log |= {"actor_loss": actor_loss.item(), "divergence": divergence.mean().item(), "lambda": multiplier.item()}
            self.track_critics()
            track(self.target_actor, self.actor)
        return log


class TD3Reevaluation(TD3Base):
    def update(self, batch: Batch) -> dict[str, float]:
        with torch.no_grad():
            y = batch["r"] + GAMMA * (1 - batch["d"]) * self.bootstrap(batch, self.offline)
        log = self.step_critics(batch, y)
        self.track_critics()
        return log


class TD3Alignment(TD3Base):
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


# ---- IQL and O2PPO -----------------------------------------------------------------------------------------------


class Gaussian(nn.Module):
    def __init__(self, s: int, a: int, hidden: list[int]) -> None:
        super().__init__()
        self.net, self.log_std = mlp([s, *hidden, a], tanh=True), nn.Parameter(torch.zeros(a))

    def distribution(self, s: Tensor) -> Normal:
        return Normal(self.net(s), self.log_std.clamp(-20.0, 2.0).exp(), validate_args=False)


class IQL(Learner):
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
        for net, optimizer, loss in ((self.actor, self.actor_adam, actor_loss), (self.value, self.value_adam, value_loss)):
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 0.5)
            optimizer.step()
        return {"actor_loss": actor_loss.item(), "value_loss": value_loss.item()}


class PPOReevaluation:
    def __init__(self, s: int, hidden: list[int]) -> None:
        self.value = mlp([s, *hidden, 1], activation=nn.Tanh)
        self.value_adam = adam(self.value, lr=1e-4)

    def update(self, batch: Batch) -> dict[str, float]:
        loss = F.mse_loss(self.value(batch["s"]).squeeze(-1), batch["return_to_go"])
        descend(self.value_adam, loss)
        return {"value_loss": loss.item()}
