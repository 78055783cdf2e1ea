"""IQL and PPO written plainly, one sample at a time, from the papers; nothing of the package is imported."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

Rows = Sequence[float]


def plain_net(
    widths: Sequence[int], weights: Sequence[tuple[Tensor, Tensor]], activation: type[nn.Module]
) -> nn.Module:
    """A Sequential with copies of ``weights``, whose gradients are its own."""
    layers: list[nn.Module] = []
    for i, (weight, bias) in enumerate(weights):
        linear = nn.Linear(widths[i], widths[i + 1], dtype=weight.dtype)
        linear.weight.data.copy_(weight)
        linear.bias.data.copy_(bias)
        layers += [linear, activation()]
    return nn.Sequential(*layers[:-1])


def log_density(action: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """``torch.distributions``' own Normal, summed over dimensions."""
    return torch.distributions.Normal(mean, log_std.exp()).log_prob(action).sum(-1)


def gae(value: Rows, next_value: Rows, reward: Rows, terminated: Rows, ended: Rows, gamma: float, lam: float) -> Rows:
    """The recursion as printed, backwards from zero."""
    advantage, following = [0.0] * len(value), 0.0
    for t in reversed(range(len(value))):
        delta = reward[t] + gamma * (0.0 if terminated[t] else next_value[t]) - value[t]
        following = delta + (0.0 if ended[t] else gamma * lam * following)
        advantage[t] = following
    return advantage


def returns_to_go(reward: Rows, terminated: Rows, truncated: Rows, gamma: float, leak: bool) -> Rows:
    result, following = [0.0] * len(reward), 0.0
    for t in reversed(range(len(reward))):
        stop = terminated[t] or (truncated[t] and not leak)
        following = reward[t] + (0.0 if stop else gamma * following)
        result[t] = following
    return result


def scaled_rewards(reward: Rows, ended: Rows, gamma: float) -> Rows:
    """Rewards by the deviation of all running returns so far, computed anew at every step.

    A sum of squares that starts at 1 is one unit of extra variance, shared by the steps so far.
    """
    seen: list[float] = []
    running, result = 0.0, []
    for r, end in zip(reward, ended, strict=True):
        running = gamma * running + r
        seen.append(running)
        mean = sum(seen) / len(seen)
        variance = (1.0 + sum((x - mean) ** 2 for x in seen)) / len(seen)
        result.append(r / (math.sqrt(variance) + 1e-8))
        running = 0.0 if end else running
    return result


def auxiliary(action: Tensor, mean: Tensor, std: Tensor, joint: bool) -> Tensor:
    """Eq. 51 sample by sample, with log1p for the softplus."""

    def softplus(x: float) -> float:
        return max(x, 0.0) + math.log1p(math.exp(-abs(x)))

    result = []
    for a, m in zip(action.tolist(), mean.tolist(), strict=True):
        terms = [0.5 * (1 - ((x - y) / s) ** 2) for x, y, s in zip(a, m, std.tolist(), strict=True)]
        size = len(terms)
        if joint:
            result.append((softplus(sum(terms) + 4 * size) - 4 * size) / size)
        else:
            result.append(sum(softplus(x + 4) - 4 for x in terms) / size)
    return torch.tensor(result, dtype=action.dtype)


def surrogate(new: Tensor, old: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """PPO's loss sample by sample: outside the clip, on the side that would gain, a sample has no gradient."""
    total = new.new_zeros(())
    for i in range(len(new)):
        ratio = (new[i] - old[i]).exp()
        gains = (ratio > 1 + clip and advantage[i] > 0) or (ratio < 1 - clip and advantage[i] < 0)
        bound = 1 + clip if ratio > 1 else 1 - clip
        total = total - (bound * advantage[i] if gains else ratio * advantage[i])
    return total / len(new)


def iql_losses(
    q: Tensor, q_target: Tensor, value: Tensor, next_value: Tensor, reward: Tensor, terminated: Tensor,
    log_prob: Tensor, gamma: float, expectile: float, beta: float, cap: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """V, Q and policy loss; ``q`` and ``q_target`` ``[2, B]``, the rest ``[B]``."""
    count = len(value)
    v_loss, q_loss, pi_loss = (value.new_zeros(()) for _ in range(3))
    for i in range(count):
        x = torch.min(q_target[0, i], q_target[1, i]).detach() - value[i]
        v_loss = v_loss + (expectile if x > 0 else 1 - expectile) * x**2 / count
        y = reward[i] + gamma * (1 - terminated[i]) * next_value[i].detach()
        q_loss = q_loss + 0.5 * ((q[0, i] - y) ** 2 + (q[1, i] - y) ** 2) / count
        weight = min(math.exp(beta * float(x.detach())), cap)
        pi_loss = pi_loss - weight * log_prob[i] / count
    return v_loss, q_loss, pi_loss
