"""Every gradient of AWAC's and BC's updates against losses written plainly from the papers and CORL, in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution

from o2o_lightning.agents.base import ActorCritic, Agent
from o2o_lightning.nn.actors import fresh_actor
from o2o_lightning.nn.critics import Critics
from o2o_lightning.nn.gaussian import GaussianActor
from o2o_lightning.nn.mlp import MLP
from o2o_lightning.objectives.awac import awac_policy_loss, awac_weight, sampled_advantage
from o2o_lightning.phases import AWAC, BC

S, A, B, HIDDEN = 5, 3, 48, (16, 12)
SEEDS = (0, 1, 2)
EXACT = {"rtol": 1e-9, "atol": 1e-12}


def shaken(phase: Any, agent: nn.Module) -> Any:
    """``phase`` with random networks, no two of them equal, in float64."""
    phase.agent = agent
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return phase.double()


def draw(seed: int) -> TensorDict:
    torch.manual_seed(seed + 100)
    successor = {"observation": torch.randn(B, S), "terminated": (torch.rand(B) < 0.3).float()}
    columns = {"observation": torch.randn(B, S), "action": torch.rand(B, A) * 2 - 1, "reward": torch.randn(B)}
    return TensorDict({**columns, "next": TensorDict(successor, [B])}, [B]).double()


def given(phase: Any, *noises: Tensor) -> None:
    """``phase`` draws these, in turn."""
    left = iter(noises)
    phase.normal_like = lambda tensor: next(left)


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


def awac(seed: int, **options: Any) -> AWAC:
    torch.manual_seed(seed)
    agent = ActorCritic(GaussianActor(S, A, HIDDEN, mean="linear"), Critics(S, A, HIDDEN, layer_norm=False))
    return shaken(AWAC(**options), agent)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("temperature", "cap"), [(0.3333, 100.0), (0.1, 2.0)])
def test_awacs_two_losses_have_the_gradients_of_plain_ones(seed: int, temperature: float, cap: float) -> None:
    phase, batch = awac(seed, temperature=temperature, weight_cap=cap), draw(seed)
    agent, s, a, s2 = phase.agent, batch["observation"], batch["action"], batch["next", "observation"]
    noise = torch.randn(2, B, A, dtype=torch.float64)
    given(phase, *noise)
    update = phase.update(batch)

    loss = next(update)
    loss.value.backward()
    actor, log_std = plain_net(agent.actor.body), agent.actor.raw_log_std.detach().clone().requires_grad_()
    next_action = torch.clamp(actor(s2) + log_std.exp() * noise[0], -1, 1).detach()
    target = torch.stack([plain_net(net)(torch.cat((s2, next_action), 1))[:, 0] for net in agent.target_critic.members])
    y = (batch["reward"] + 0.99 * (1 - batch["next", "terminated"]) * target.min(0).values).detach()
    for member in agent.critic.members:
        plain = plain_net(member)
        ((plain(torch.cat((s, a), 1))[:, 0] - y) ** 2).mean().backward()
        assert_gradients(member, plain)
    assert with_gradients(agent) == {"critic"}

    # a step of the critics in between: the weights are those of the new critics
    with torch.no_grad():
        for parameter in agent.critic.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    agent.zero_grad()
    next(update).value.backward()
    members = [plain_net(net) for net in agent.critic.members]
    sampled = torch.clamp(actor(s) + log_std.exp() * noise[1], -1, 1).detach()
    total, weights = torch.zeros((), dtype=torch.float64), []
    for i in range(B):
        q, v = (min(net(torch.cat((s[i], action[i]))).item() for net in members) for action in (a, sampled))
        weights.append(min(math.exp((q - v) / temperature), cap))
        density = Normal(actor(s[i]), log_std.exp())
        total = total - weights[-1] * density.log_prob(a[i]).sum() / B
    total.backward()
    assert_gradients(agent.actor.body, actor)
    torch.testing.assert_close(agent.actor.raw_log_std.grad, log_std.grad, **EXACT)
    assert with_gradients(agent) == {"actor"}
    assert cap > 2.0 or weights.count(cap) > 5  # the cap is at work in the second row

    # and the targets move after both
    before, online = (net.members[0].linears[0].weight.clone() for net in (agent.target_critic, agent.critic))
    assert next(update, None) is None
    moved = agent.target_critic.members[0].linears[0].weight
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
    phase = AWAC()
    phase._trainer = type("Stub", (), {"datamodule": type("Data", (), {"sizes": lambda self: (11, 3)})()})()  # type: ignore[assignment]
    agent = phase.build(None)
    for body in (agent.actor.body, *agent.critic.members):
        assert [linear.out_features for linear in body.linears][:-1] == [256] * 3
        assert float(body.linears[1].weight.std()) == pytest.approx(1 / math.sqrt(3 * 256), rel=0.02)
    assert agent.actor.spec.mean == "linear" and float(agent.actor.log_std().exp().min()) == 1.0


# ---- BC ----------------------------------------------------------------------------------------------------------


def bc(family: str, seed: int) -> BC:
    torch.manual_seed(seed)
    phase = BC(family)  # type: ignore[arg-type]
    return shaken(phase, Agent(fresh_actor(family, S, A, HIDDEN)))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_deterministic_policy_descends_the_mean_square(seed: int) -> None:
    phase, batch = bc("deterministic", seed), draw(seed)
    (loss,) = phase.update(batch)
    loss.value.backward()
    plain = plain_net(phase.agent.actor.body)
    squares = (torch.tanh(plain(batch["observation"])) - batch["action"]) ** 2
    (squares.sum() / (B * A)).backward()
    assert_gradients(phase.agent.actor.body, plain)
    assert with_gradients(phase) == {"agent"} and set(phase.learners()) == {"actor"}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_gaussian_policy_descends_the_likelihood_of_the_data_and_the_weighted_entropy(seed: int) -> None:
    phase, batch = bc("gaussian", seed), draw(seed)
    (loss,) = phase.update(batch)
    loss.value.backward()
    actor = phase.agent.actor
    plain, log_std = plain_net(actor.body), actor.raw_log_std.detach().clone().requires_grad_()
    policy = Independent(Normal(torch.tanh(plain(batch["observation"])), log_std.exp().expand(B, A)), 1)
    temperature = phase.log_temperature.exp().item()
    assert temperature == pytest.approx(0.1, rel=1e-6)
    (-policy.log_prob(batch["action"]) - temperature * policy.entropy()).mean().backward()
    assert_gradients(actor.body, plain)
    torch.testing.assert_close(actor.raw_log_std.grad, log_std.grad, **EXACT)
    slope = float(policy.entropy().mean().detach()) + A
    assert float(phase.log_temperature.grad) == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_squashed_policy_descends_the_likelihood_of_the_data_and_the_weighted_entropy(seed: int) -> None:
    phase, batch = bc("squashed_gaussian", seed), draw(seed)
    noise = torch.randn(B, A, dtype=torch.float64)
    given(phase, noise)
    (loss,) = phase.update(batch)
    loss.value.backward()
    actor = phase.agent.actor
    plain = plain_net(actor.body)
    scale, offset = (p.detach().clone().requires_grad_() for p in (actor.log_std_scale, actor.log_std_offset))
    mean, raw = plain(batch["observation"]).chunk(2, -1)
    gaussian = Independent(Normal(mean, torch.clamp(scale * raw + offset, -20, 2).exp()), 1)
    policy = TransformedDistribution(gaussian, [TanhTransform(cache_size=1)])
    entropy = -policy.log_prob(torch.tanh(mean + gaussian.base_dist.scale * noise))
    temperature = float(phase.log_temperature.exp().detach())
    (-policy.log_prob(batch["action"].clamp(-0.9999, 0.9999)) - temperature * entropy).mean().backward()
    assert_gradients(actor.body, plain)
    torch.testing.assert_close(actor.log_std_scale.grad, scale.grad, **EXACT)
    torch.testing.assert_close(actor.log_std_offset.grad, offset.grad, **EXACT)
    assert float(phase.log_temperature.grad) == pytest.approx(float(entropy.mean().detach()) + A, rel=1e-9)
