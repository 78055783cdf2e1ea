"""What the textbook's learners are made of."""

from __future__ import annotations

import copy
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


def mlp(
    sizes: list[int], norm: bool = False, tanh: bool = False, activation: type[nn.Module] = nn.ReLU
) -> nn.Sequential:
    """Linear → LayerNorm (if asked) → activation, …, Linear."""
    layers: list[nn.Module] = []
    for i in range(len(sizes) - 2):
        layers += [nn.Linear(sizes[i], sizes[i + 1]), *([nn.LayerNorm(sizes[i + 1])] if norm else []), activation()]
    layers.append(nn.Linear(sizes[-2], sizes[-1]))
    return nn.Sequential(*layers, *([nn.Tanh()] if tanh else []))


class Critic(nn.Module):
    """Q(s, a)."""

    def __init__(self, s: int, a: int, hidden: list[int], norm: bool) -> None:
        super().__init__()
        self.net = mlp([s + a, *hidden, 1], norm)

    def forward(self, s: Tensor, a: Tensor) -> Tensor:
        if s.ndim < a.ndim:  # several actions a state
            s = s.unsqueeze(1).expand(-1, a.shape[1], -1)
        return self.net(torch.cat([s, a], dim=-1)).squeeze(-1)


class TanhGaussian(nn.Module):
    """SAC's policy by ``torch.distributions``."""

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
    """Polyak averaging."""
    for kept, new in zip(target.parameters(), source.parameters(), strict=True):
        kept.data.copy_(RATE * new.data + (1 - RATE) * kept.data)


def descend(optimizer: torch.optim.Optimizer, loss: Tensor, keep: bool = False) -> None:
    """One step of one optimizer."""
    optimizer.zero_grad()
    loss.backward(retain_graph=keep)
    optimizer.step()


def adam(*parts: Any, lr: float = 3e-4) -> torch.optim.Adam:
    """The default Adam."""
    lists = [part.parameters() if isinstance(part, nn.Module) else [part] for part in parts]
    return torch.optim.Adam([parameter for parameters in lists for parameter in parameters], lr)


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
