"""Every gradient of AWAC's and BC's updates against losses written plainly from the papers and CORL, in float64."""

from __future__ import annotations

import math
from typing import Any

import by_hand
import pytest
import torch
from by_hand import HIDDEN, A, ready, transitions
from tensordict import TensorDict
from torch import nn
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution

from o2o_lightning.engine.engine import Engine
from o2o_lightning.methods.awac import AWAC
from o2o_lightning.methods.bc import BC
from o2o_lightning.methods.method import Moment, Noise, Task
from o2o_lightning.nn.mlp import MLP
from o2o_lightning.objectives.awr import awac_policy_loss, awac_weight, sampled_advantage

B = 48
SEEDS = (0, 1, 2)
EXACT = {"rtol": 1e-9, "atol": 1e-12}


def draw(seed: int) -> TensorDict:
    return transitions(by_hand.draw(seed, B))


def plain_net(body: MLP) -> nn.Sequential:
    """A Sequential of the same weights, whose gradients are its own."""
    layers: list[nn.Module] = []
    for linear in body.linears:
        copy = nn.Linear(linear.in_features, linear.out_features, dtype=torch.float64)
        copy.load_state_dict(linear.state_dict())
        layers += [copy, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def assert_gradients(body: MLP, net: nn.Sequential) -> None:
    """``body`` has the gradients of the plain copy ``net``."""
    linears = [part for part in net if isinstance(part, nn.Linear)]
    for ours, plain in zip(body.linears, linears, strict=True):
        torch.testing.assert_close(ours.weight.grad, plain.weight.grad, **EXACT)
        torch.testing.assert_close(ours.bias.grad, plain.bias.grad, **EXACT)


def with_gradients(module: nn.Module) -> set[str]:
    return {name.split(".")[0] for name, parameter in module.named_parameters() if parameter.grad is not None}


# ---- AWAC --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("temperature", "cap"), [(0.3333, 100.0), (0.1, 2.0)])
def test_awacs_two_losses_have_the_gradients_of_plain_ones(seed: int, temperature: float, cap: float) -> None:
    method, batch = ready(AWAC(temperature=temperature, weight_cap=cap, hidden=HIDDEN), seed), draw(seed)
    s, a, s2 = batch["observation"], batch["action"], batch["next", "observation"]
    noise = by_hand.noise_of(method, (B, A), seed)
    update = Engine(method).losses(Moment(0), batch, noise)

    loss = next(update)
    loss.value.backward()
    actor, log_std = plain_net(method.actor.body), method.actor.raw_log_std.detach().clone().requires_grad_()
    next_action = torch.clamp(actor(s2) + log_std.exp() * noise["target"], -1, 1).detach()
    x2 = torch.cat((s2, next_action), 1)
    target = torch.stack([plain_net(net)(x2)[:, 0] for net in method.target_critic.members])
    y = (batch["reward"] + 0.99 * (1 - batch["next", "terminated"]) * target.min(0).values).detach()
    for member in method.critic.members:
        plain = plain_net(member)
        ((plain(torch.cat((s, a), 1))[:, 0] - y) ** 2).mean().backward()
        assert_gradients(member, plain)
    assert with_gradients(method) == {"critic"}

    # a step of the critics in between: the weights are those of the new critics
    with torch.no_grad():
        for parameter in method.critic.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    method.zero_grad()
    next(update).value.backward()
    members = [plain_net(net) for net in method.critic.members]
    sampled = torch.clamp(actor(s) + log_std.exp() * noise["policy"], -1, 1).detach()
    total, weights = torch.zeros((), dtype=torch.float64), []
    for i in range(B):
        q, v = (min(net(torch.cat((s[i], action[i]))).item() for net in members) for action in (a, sampled))
        weights.append(min(math.exp((q - v) / temperature), cap))
        density = Normal(actor(s[i]), log_std.exp())
        total = total - weights[-1] * density.log_prob(a[i]).sum() / B
    total.backward()
    assert_gradients(method.actor.body, actor)
    torch.testing.assert_close(method.actor.raw_log_std.grad, log_std.grad, **EXACT)
    assert with_gradients(method) == {"actor"}
    assert cap > 2.0 or weights.count(cap) > 5  # the cap is at work in the second row

    # and the targets move after both
    before, online = (net.members[0].linears[0].weight.clone() for net in (method.target_critic, method.critic))
    assert next(update, None) is None
    moved = method.target_critic.members[0].linears[0].weight
    torch.testing.assert_close(moved, 0.995 * before + 0.005 * online, **EXACT)


def test_a_very_good_action_has_the_weight_of_the_cap_and_no_infinity() -> None:
    advantage = torch.tensor([1e6, 0.0, -1e6], requires_grad=True)
    weight = awac_weight(advantage, 0.1, 100.0)
    assert weight.tolist() == [100.0, 1.0, 0.0] and not weight.requires_grad


def test_the_advantage_takes_each_actions_own_smallest_value() -> None:
    q_data, q_sampled = torch.tensor([[3.0, 1.0], [2.0, 5.0]]), torch.tensor([[1.0, 4.0], [0.5, 2.0]])
    assert sampled_advantage(q_data, q_sampled).tolist() == [1.5, -1.0]
    assert float(awac_policy_loss(torch.tensor([2.0, 0.0]), torch.tensor([-3.0, 7.0]))) == 3.0


def test_awac_starts_with_the_frameworks_layers_and_a_unit_deviation() -> None:
    # CORL: uniform in ±1/√fan_in, whose deviation is 1/√(3·fan_in); orthogonal layers would have 1/√fan_in
    method = AWAC()
    method.build(Task(11, 3))
    for body in (method.actor.body, *method.critic.members):
        assert [linear.out_features for linear in body.linears][:-1] == [256] * 3
        assert float(body.linears[1].weight.std()) == pytest.approx(1 / math.sqrt(3 * 256), rel=0.02)
    assert method.actor.spec.mean == "linear" and float(method.actor.log_std().exp().min()) == 1.0


# ---- BC ----------------------------------------------------------------------------------------------------------


def descended(family: Any, seed: int, batch: TensorDict) -> tuple[BC, Noise]:
    """A method after the backward pass of its one loss, and the noise that it was given."""
    method: BC = ready(BC(family=family, hidden=HIDDEN), seed)
    noise = by_hand.noise_of(method, (B, A), seed)
    (loss,) = Engine(method).losses(Moment(0), batch, noise)
    loss.value.backward()
    return method, noise


@pytest.mark.parametrize("seed", SEEDS)
def test_a_deterministic_policy_descends_the_mean_square(seed: int) -> None:
    batch = draw(seed)
    method, _ = descended("deterministic", seed, batch)
    plain = plain_net(method.actor.body)
    squares = (torch.tanh(plain(batch["observation"])) - batch["action"]) ** 2
    (squares.sum() / (B * A)).backward()
    assert_gradients(method.actor.body, plain)
    assert with_gradients(method) == {"actor"} and set(method.learners()) == {"actor"}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_gaussian_policy_descends_the_likelihood_of_the_data_and_the_weighted_entropy(seed: int) -> None:
    batch = draw(seed)
    method, _ = descended("gaussian", seed, batch)
    actor = method.actor
    plain, log_std = plain_net(actor.body), actor.raw_log_std.detach().clone().requires_grad_()
    policy = Independent(Normal(torch.tanh(plain(batch["observation"])), log_std.exp().expand(B, A)), 1)
    temperature = method.log_temperature.exp().item()
    assert temperature == pytest.approx(0.1, rel=1e-6)
    (-policy.log_prob(batch["action"]) - temperature * policy.entropy()).mean().backward()
    assert_gradients(actor.body, plain)
    torch.testing.assert_close(actor.raw_log_std.grad, log_std.grad, **EXACT)
    slope = float(policy.entropy().mean().detach()) + A
    assert float(method.log_temperature.grad) == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_squashed_policy_descends_the_likelihood_of_the_data_and_the_weighted_entropy(seed: int) -> None:
    batch = draw(seed)
    method, noise = descended("squashed_gaussian", seed, batch)
    actor = method.actor
    plain = plain_net(actor.body)
    scale, offset = (p.detach().clone().requires_grad_() for p in (actor.log_std_scale, actor.log_std_offset))
    mean, raw = plain(batch["observation"]).chunk(2, -1)
    gaussian = Independent(Normal(mean, torch.clamp(scale * raw + offset, -20, 2).exp()), 1)
    policy = TransformedDistribution(gaussian, [TanhTransform(cache_size=1)])
    entropy = -policy.log_prob(torch.tanh(mean + gaussian.base_dist.scale * noise["entropy"]))
    temperature = float(method.log_temperature.exp().detach())
    (-policy.log_prob(batch["action"].clamp(-0.9999, 0.9999)) - temperature * entropy).mean().backward()
    assert_gradients(actor.body, plain)
    torch.testing.assert_close(actor.log_std_scale.grad, scale.grad, **EXACT)
    torch.testing.assert_close(actor.log_std_offset.grad, offset.grad, **EXACT)
    assert float(method.log_temperature.grad) == pytest.approx(float(entropy.mean().detach()) + A, rel=1e-9)
