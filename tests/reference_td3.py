"""Every TD3 loss of the method as a textbook would write it, independent of the package's objectives and networks.

Networks are plain ``nn.Sequential`` with copied weights; one expression a loss, no shared pass, no cached anchor,
no concatenated batch. Batches are flat dictionaries: s, a, r, s2, d.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

Batch = dict[str, Tensor]


def plain_net(weights: dict[str, Tensor], tanh: bool = False) -> nn.Sequential:
    """Linear → LayerNorm (where there is one) → ReLU, …, Linear; from ``linears.i.*`` and ``norms.i.*``."""
    depth = sum(key.startswith("linears.") and key.endswith("weight") for key in weights)
    parts: list[nn.Module] = []
    for i in range(depth):
        weight = weights[f"linears.{i}.weight"]
        linear = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
        linear.load_state_dict({"weight": weight, "bias": weights[f"linears.{i}.bias"]})
        parts.append(linear)
        if i == depth - 1:
            break
        if f"norms.{i}.weight" in weights:
            norm = nn.LayerNorm(weight.shape[0], dtype=weight.dtype)
            norm.load_state_dict({"weight": weights[f"norms.{i}.weight"], "bias": weights[f"norms.{i}.bias"]})
            parts.append(norm)
        parts.append(nn.ReLU())
    return nn.Sequential(*parts, *([nn.Tanh()] if tanh else []))


def gradients(net: nn.Sequential) -> dict[str, Tensor]:
    """What a backward pass left, under the names that :func:`plain_net` read."""
    found = {}
    for kind, name in ((nn.Linear, "linears"), (nn.LayerNorm, "norms")):
        for i, part in enumerate(part for part in net if isinstance(part, kind)):
            found |= {f"{name}.{i}.{key}": p.grad for key, p in part.named_parameters() if p.grad is not None}
    return found


@dataclass
class Nets:
    actor: nn.Sequential
    critic: list[nn.Sequential]
    target_actor: nn.Sequential
    target_critic: list[nn.Sequential]
    offline_actor: nn.Sequential
    reference: nn.Sequential | None = None


def q_of(critic: nn.Sequential, s: Tensor, a: Tensor) -> Tensor:
    return critic(torch.cat([s, a], dim=1)).squeeze(1)


def smooth(action: Tensor, noise: Tensor) -> Tensor:
    return torch.clamp(action + torch.clamp(0.2 * noise, -0.5, 0.5), -1, 1)


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    return nn.functional.mse_loss(prediction, target)


def td3_target(nets: Nets, batch: Batch, noise: Tensor, gamma: float) -> Tensor:
    with torch.no_grad():
        a2 = smooth(nets.target_actor(batch["s2"]), noise)
        q1, q2 = (q_of(critic, batch["s2"], a2) for critic in nets.target_critic)
        return batch["r"] + gamma * (1 - batch["d"]) * torch.minimum(q1, q2)


def td3_critic_loss(nets: Nets, batch: Batch, noise: Tensor, gamma: float = 0.99) -> Tensor:
    y = td3_target(nets, batch, noise, gamma)
    q1, q2 = (q_of(critic, batch["s"], batch["a"]) for critic in nets.critic)
    return squared_error(q1, y) + squared_error(q2, y)


def td3_actor_loss(nets: Nets, batch: Batch) -> Tensor:
    q = q_of(nets.critic[0], batch["s"], nets.actor(batch["s"]))
    return -q.mean() / q.abs().mean().detach()


def td3_bc_actor_loss(nets: Nets, batch: Batch, alpha: float = 2.5) -> Tensor:
    pi = nets.actor(batch["s"])
    q = q_of(nets.critic[0], batch["s"], pi)
    lmbda = alpha / q.abs().mean().detach()
    return -lmbda * q.mean() + squared_error(pi, batch["a"])


def reevaluation_loss(nets: Nets, batch: Batch, noise: Tensor, gamma: float = 0.99) -> Tensor:
    with torch.no_grad():
        a2 = smooth(nets.offline_actor(batch["s2"]), noise)
        q1, q2 = (q_of(critic, batch["s2"], a2) for critic in nets.target_critic)
        y = batch["r"] + gamma * (1 - batch["d"]) * torch.minimum(q1, q2)
    return sum((squared_error(q_of(critic, batch["s"], batch["a"]), y) for critic in nets.critic), torch.tensor(0.0))


def alignment_critic_loss(nets: Nets, batch: Batch, noise: Tensor, k: float = 1.0, sigma: float = 0.2) -> Tensor:
    s = batch["s"]
    with torch.no_grad():
        anchor = nets.offline_actor(s)
        anchor_q = torch.minimum(*(q_of(critic, s, anchor) for critic in nets.target_critic))
        a = smooth(nets.actor(s), noise)
        distance = torch.linalg.vector_norm(a - anchor, dim=1) / anchor.shape[1] ** 0.5
        factor = 1 + k * torch.minimum(distance, torch.full_like(distance, sigma)) ** 2
        calibrated = torch.where(anchor_q < 0, anchor_q * factor, anchor_q / factor)
        ceilings = [q_of(critic, s, a) for critic in nets.target_critic]
    loss = torch.tensor(0.0)
    for critic, ceiling in zip(nets.critic, ceilings, strict=True):
        loss = loss + squared_error(q_of(critic, s, a), torch.minimum(calibrated, ceiling))
        loss = loss + squared_error(q_of(critic, s, anchor), anchor_q)
    return loss


def alignment_actor_loss(nets: Nets, batch: Batch) -> Tensor:
    return -q_of(nets.critic[0], batch["s"], nets.actor(batch["s"])).mean()


def online_critic_loss(
    nets: Nets, batch: Batch, noise: Tensor, lmbda: float, per_state: bool, gamma: float = 0.99
) -> Tensor:
    with torch.no_grad():
        a2 = smooth(nets.target_actor(batch["s2"]), noise)
        q1, q2 = (q_of(critic, batch["s2"], a2) for critic in nets.target_critic)
        gap = (nets.actor(batch["s2"]) - nets.reference(batch["s2"])) ** 2
        penalty = gap.mean(dim=1) if per_state else gap.mean()
        y = batch["r"] + gamma * (1 - batch["d"]) * (torch.minimum(q1, q2) - lmbda * penalty)
    q1, q2 = (q_of(critic, batch["s"], batch["a"]) for critic in nets.critic)
    return squared_error(q1, y) + squared_error(q2, y)


def online_actor_loss(nets: Nets, batch: Batch, lmbda: float, normalize: bool = True) -> Tensor:
    pi = nets.actor(batch["s"])
    q = q_of(nets.critic[0], batch["s"], pi)
    scale = q.abs().mean().detach() if normalize else 1.0
    with torch.no_grad():
        reference = nets.reference(batch["s"])
    return -q.mean() / scale + lmbda * squared_error(pi, reference)


def online_multiplier_loss(nets: Nets, batch: Batch, log_lambda: Tensor, threshold: float) -> Tensor:
    with torch.no_grad():
        u = threshold - (nets.actor(batch["s"]) - nets.reference(batch["s"])) ** 2
        weight = torch.full_like(u, 0.7)
        weight[u > 0] = 0.3
    return torch.exp(log_lambda) * (weight * u).mean()
