"""Every SAC and CQL loss of the method as a textbook would write it, independent of the package's code.

Networks are plain ``nn.Sequential`` with copied weights, densities are ``torch.distributions``; one expression a loss,
no shared pass, no cache, no concatenated batch. Batches are flat dictionaries: s, a, r, s2, d.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

Batch = dict[str, Tensor]


def plain_net(weights: dict[str, Tensor]) -> nn.Sequential:
    """Linear → LayerNorm (where there is one) → ReLU, …, Linear; from ``linears.i.*`` and ``norms.i.*``."""
    depth = sum(key.startswith("linears.") and key.endswith("weight") for key in weights)
    parts: list[nn.Module] = []
    for i in range(depth):
        weight = weights[f"linears.{i}.weight"]
        parts.append(nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype))
        parts[-1].load_state_dict({"weight": weight, "bias": weights[f"linears.{i}.bias"]})
        if i < depth - 1 and f"norms.{i}.weight" in weights:
            parts.append(nn.LayerNorm(weight.shape[0], dtype=weight.dtype))
            parts[-1].load_state_dict({"weight": weights[f"norms.{i}.weight"], "bias": weights[f"norms.{i}.bias"]})
        if i < depth - 1:
            parts.append(nn.ReLU())
    return nn.Sequential(*parts)


def net_gradients(net: nn.Sequential) -> dict[str, Tensor]:
    """What a backward pass left, under the names that :func:`plain_net` read."""
    found = {}
    for kind, name in ((nn.Linear, "linears"), (nn.LayerNorm, "norms")):
        for i, part in enumerate(part for part in net if isinstance(part, kind)):
            found |= {f"{name}.{i}.{key}": p.grad for key, p in part.named_parameters() if p.grad is not None}
    return found


class PlainActor(nn.Module):
    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.body = plain_net({key[5:]: value for key, value in weights.items() if key.startswith("body.")})
        self.scale = nn.Parameter(weights["log_std_scale"].clone())
        self.offset = nn.Parameter(weights["log_std_offset"].clone())

    def moments(self, s: Tensor) -> tuple[Tensor, Tensor]:
        out = self.body(s)
        width = out.shape[-1] // 2
        return out[..., :width], torch.clamp(self.scale * out[..., width:] + self.offset, -20, 2).exp()

    def gaussian(self, s: Tensor) -> Normal:
        return Normal(*self.moments(s))

    def squashed(self, s: Tensor) -> TransformedDistribution:
        # the cache keeps the value before tanh of an action just sampled
        return TransformedDistribution(Independent(self.gaussian(s), 1), [TanhTransform(cache_size=1)])

    def draw(self, s: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = self.moments(s)
        u = mean + std * noise
        tanh = TanhTransform()
        return torch.tanh(u), (Normal(mean, std).log_prob(u) - tanh.log_abs_det_jacobian(u, torch.tanh(u))).sum(-1)

    def density(self, s: Tensor, a: Tensor) -> Tensor:
        return self.squashed(s).log_prob(torch.clamp(a, -0.9999, 0.9999))

    def mode(self, s: Tensor) -> Tensor:
        return torch.clamp(torch.tanh(self.moments(s)[0]), -0.9999, 0.9999)

    def gradients(self) -> dict[str, Tensor]:
        found = {f"body.{name}": gradient for name, gradient in net_gradients(self.body).items()}
        scalars = {"log_std_scale": self.scale.grad, "log_std_offset": self.offset.grad}
        return found | {name: gradient for name, gradient in scalars.items() if gradient is not None}


@dataclass
class Nets:
    actor: PlainActor
    critic: list[nn.Sequential]
    target_critic: list[nn.Sequential]
    offline_actor: PlainActor
    log_alpha: Tensor
    reference: PlainActor | None = None
    log_lambda: Tensor | None = None
    log_lagrange: Tensor | None = None
    gamma: float = 0.99
    noise: dict[str, Tensor] = field(default_factory=dict)


def q_of(critic: nn.Sequential, s: Tensor, a: Tensor) -> Tensor:
    return critic(torch.cat([s, a], dim=-1)).squeeze(-1)


def smallest(critics: list[nn.Sequential], s: Tensor, a: Tensor) -> Tensor:
    values = [q_of(critic, s, a) for critic in critics]
    return values[0] if len(values) == 1 else torch.minimum(*values)


def squared_errors(nets: Nets, batch: Batch, y: Tensor) -> Tensor:
    losses = [nn.functional.mse_loss(q_of(critic, batch["s"], batch["a"]), y) for critic in nets.critic]
    return torch.stack(losses).sum()


def log_ratio(nets: Nets, s: Tensor, a: Tensor, log_prob: Tensor) -> Tensor:
    assert nets.reference is not None
    return log_prob - torch.clamp(nets.reference.density(s, a), min=-50)


# ---- constrained fine-tuning, Eqs. 36-39 ---------------------------------------------------------------------------


def sac_actor_loss(nets: Nets, batch: Batch, constraint: bool = True) -> Tensor:
    s, alpha = batch["s"], nets.log_alpha.detach().exp()
    a, log_prob = nets.actor.draw(s, nets.noise["policy"])
    loss = alpha * log_prob - smallest(nets.critic, s, a)
    if constraint:
        loss = loss + nets.log_lambda.detach().exp() * log_ratio(nets, s, a, log_prob)
    return loss.mean()


def sac_target(nets: Nets, batch: Batch, constraint: bool = True) -> Tensor:
    with torch.no_grad():
        s2 = batch["s2"]
        a2, log_prob = nets.actor.draw(s2, nets.noise["target"])
        value = smallest(nets.target_critic, s2, a2) - nets.log_alpha.exp() * log_prob
        if constraint:
            value = value - nets.log_lambda.exp() * log_ratio(nets, s2, a2, log_prob)
        return batch["r"] + nets.gamma * (1 - batch["d"]) * value


def sac_critic_loss(nets: Nets, batch: Batch, constraint: bool = True) -> Tensor:
    return squared_errors(nets, batch, sac_target(nets, batch, constraint))


def sac_temperature_loss(nets: Nets, batch: Batch) -> Tensor:
    _, log_prob = nets.actor.draw(batch["s"], nets.noise["policy"])
    return (-nets.log_alpha * (log_prob.detach() - batch["a"].shape[1])).mean()


def sac_multiplier_loss(nets: Nets, batch: Batch, threshold: float) -> Tensor:
    a, log_prob = nets.actor.draw(batch["s"], nets.noise["policy"])
    u = threshold - log_ratio(nets, batch["s"], a, log_prob).detach()
    omega = torch.full_like(u, 0.7)
    omega[u > 0] = 0.3
    return nets.log_lambda.exp() * (omega * u).mean()


# ---- re-evaluation and alignment -----------------------------------------------------------------------------------


def reevaluation_loss(nets: Nets, batch: Batch) -> Tensor:
    with torch.no_grad():
        a2, log_prob = nets.offline_actor.draw(batch["s2"], nets.noise["target"])
        value = smallest(nets.target_critic, batch["s2"], a2) - nets.log_alpha.exp() * log_prob
        y = batch["r"] + nets.gamma * (1 - batch["d"]) * value
    return squared_errors(nets, batch, y)


def alignment_critic_loss(nets: Nets, batch: Batch, floor: float = -50.0) -> Tensor:
    s, alpha = batch["s"], nets.log_alpha.detach().exp()
    with torch.no_grad():
        anchor = nets.offline_actor.mode(s)
        anchor_q = smallest(nets.target_critic, s, anchor)
        a, _ = nets.actor.draw(s, nets.noise["explored"])
        gap = nets.offline_actor.density(s, anchor) - torch.clamp(nets.offline_actor.density(s, a), min=floor)
        y = torch.minimum(anchor_q - alpha * gap, smallest(nets.target_critic, s, a))
    loss = torch.zeros((), dtype=s.dtype)
    for critic in nets.critic:
        loss = loss + ((q_of(critic, s, a) - y) ** 2).mean() + ((q_of(critic, s, anchor) - anchor_q) ** 2).mean()
    return loss


# ---- CQL, CORL's variant -------------------------------------------------------------------------------------------


def cql_target(nets: Nets, batch: Batch, max_target: bool, entropy_backup: bool = False) -> Tensor:
    with torch.no_grad():
        best, kept = torch.full_like(batch["r"], -torch.inf), torch.zeros_like(batch["r"])
        for noise in nets.noise["target"] if max_target else nets.noise["target"][:1]:
            a2, log_prob = nets.actor.draw(batch["s2"], noise)
            value = smallest(nets.target_critic, batch["s2"], a2)
            bonus = nets.log_alpha.exp() * log_prob if entropy_backup else torch.zeros_like(value)
            kept = torch.where(value > best, bonus, kept)
            best = torch.maximum(best, value)
        return batch["r"] + nets.gamma * (1 - batch["d"]) * (best - kept)


def cql_gaps(nets: Nets, batch: Batch, clip_below: float | None, importance: bool, temperature: float) -> list[Tensor]:
    s, samples = batch["s"], []
    with torch.no_grad():
        width = batch["a"].shape[1]
        for a in nets.noise["uniform"]:
            samples.append((a, torch.full_like(batch["r"], width * torch.tensor(0.5, dtype=s.dtype).log().item())))
        for source, name in ((batch["s2"], "following"), (s, "current")):
            samples += [nets.actor.draw(source, noise) for noise in nets.noise[name]]
    gaps = []
    for critic in nets.critic:
        data = q_of(critic, s, batch["a"])
        z = [q_of(critic, s, a) - (density if importance else 0) for a, density in samples]
        z = z if importance else [*z, data]
        soft_max = temperature * torch.stack([value / temperature for value in z]).exp().sum(0).log()
        gap = soft_max - data
        gaps.append((gap if clip_below is None else torch.clamp(gap, min=clip_below)).mean())
    return gaps


def cql_critic_loss(
    nets: Nets,
    batch: Batch,
    weight: float,
    target_gap: float | None,
    max_target: bool = False,
    clip_below: float | None = None,
    importance: bool = True,
    entropy_backup: bool = False,
    temperature: float = 1.0,
) -> Tensor:
    loss = squared_errors(nets, batch, cql_target(nets, batch, max_target, entropy_backup))
    for gap in cql_gaps(nets, batch, clip_below, importance, temperature):
        if target_gap is None:
            loss = loss + weight * gap
        else:
            alpha_prime = torch.clamp(nets.log_lagrange.detach().exp(), 0, 1e6)
            loss = loss + alpha_prime * weight * (gap - target_gap)
    return loss


def cql_lagrange_loss(nets: Nets, batch: Batch, weight: float, target_gap: float, clip_below: float | None) -> Tensor:
    alpha_prime = torch.clamp(nets.log_lagrange.exp(), 0, 1e6)
    gaps = cql_gaps(nets, batch, clip_below, True, 1.0)
    return -0.5 * sum(alpha_prime * weight * (gap.detach() - target_gap) for gap in gaps)
