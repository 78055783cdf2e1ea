"""The networks that TD3's methods are made of: their order of layers, and one set of weights in three uses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from o2o_lightning.engine.engine import Engine
from o2o_lightning.methods.method import Follow, Method
from o2o_lightning.nn.actor import DeterministicActor
from o2o_lightning.nn.critics import Critics
from o2o_lightning.nn.mlp import MLP, orthogonal_
from o2o_lightning.nn.targets import frozen_copy, hard_update


@given(scale=st.floats(0.05, 50.0), seed=st.integers(0, 2**16))
def test_layer_norm_before_the_activation_ignores_the_scale_of_its_layer(scale: float, seed: int) -> None:
    torch.manual_seed(seed)
    net = MLP(4, (32, 32), 1, layer_norm=True).double()
    x = torch.randn(8, 4, dtype=torch.float64)
    before = net(x)
    with torch.no_grad():
        net.linears[0].weight.mul_(scale)
        net.linears[0].bias.mul_(scale)
    # LayerNorm's ε = 1e-5 beside a variance of about 1/3, of scale²/3 after scaling
    torch.testing.assert_close(net(x), before, rtol=0, atol=2e-4 * max(1.0, scale**-2))


def test_a_hidden_layer_is_linear_then_layer_norm_then_relu() -> None:
    net = MLP(1, (2,), 2, layer_norm=True)
    with torch.no_grad():
        for parameter, value in (
            (net.linears[0].weight, [[1.0], [3.0]]),
            (net.linears[0].bias, [0.0, 0.0]),
            (net.linears[1].weight, [[1.0, 0.0], [0.0, 1.0]]),
            (net.linears[1].bias, [0.0, 0.0]),
        ):
            parameter.copy_(torch.tensor(value))
    # (1, 3) is normalised to (−1, 1), and ReLU leaves (0, 1); the other order would give (−1, 1)
    torch.testing.assert_close(net(torch.ones(1, 1)), torch.tensor([[0.0, 1.0]]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_acting_without_torch_gives_the_same_actions(activation: str) -> None:
    torch.manual_seed(0)
    actor = DeterministicActor(5, 2, (16, 16))
    actor.body.activation = activation
    observation = np.random.default_rng(0).standard_normal((7, 5)).astype(np.float32)
    expected = actor(torch.from_numpy(observation)).detach().numpy()
    np.testing.assert_allclose(actor.act(observation), expected, atol=1e-6)
    np.testing.assert_allclose(actor.act(observation[3]), expected[3], atol=1e-6)


@pytest.mark.parametrize("layer_norm", [True, False])
def test_a_pass_with_frozen_weights_has_the_same_values_and_the_same_slope_in_the_action(layer_norm: bool) -> None:
    torch.manual_seed(0)
    critics = Critics(3, 2, (16, 16), layer_norm)
    observation, action = torch.randn(6, 3), torch.randn(6, 2, requires_grad=True)
    plain, frozen = critics(observation, action), critics(observation, action, frozen=True)
    assert torch.equal(plain, frozen)
    assert torch.equal(critics.first(observation, action), plain[0])
    (expected,) = torch.autograd.grad(plain.sum(), action)
    frozen.sum().backward()
    assert torch.equal(action.grad, expected)
    assert all(parameter.grad is None for parameter in critics.parameters())


def test_initial_layers_are_orthogonal_without_bias() -> None:
    torch.manual_seed(0)
    for net in (DeterministicActor(6, 2, (8, 8)), Critics(6, 2, (8, 8), True)):
        for layer in (part for part in net.modules() if isinstance(part, nn.Linear)):
            rows, columns = layer.weight.shape
            gram = layer.weight @ layer.weight.T if rows <= columns else layer.weight.T @ layer.weight
            torch.testing.assert_close(gram, torch.eye(min(rows, columns)), rtol=0, atol=1e-5)
            assert torch.equal(layer.bias, torch.zeros(rows))


def test_the_two_critics_are_independent() -> None:
    torch.manual_seed(0)
    critics = Critics(3, 1, (8,), True)
    first, second = critics(torch.randn(4, 3), torch.randn(4, 1))
    assert not torch.allclose(first, second)


@given(rate=st.floats(0.0, 1.0))
def test_a_polyak_average_is_the_weighted_mean_in_place(rate: float) -> None:
    torch.manual_seed(0)
    source, other = nn.Linear(3, 2), nn.Linear(3, 2)
    target = frozen_copy(other)
    address = target.weight.data_ptr()
    Engine(Method()).follow(Follow(target, source, rate))
    torch.testing.assert_close(target.weight, ((1 - rate) * other.weight + rate * source.weight).detach())
    assert target.weight.data_ptr() == address
    assert not target.weight.requires_grad


def test_a_hard_update_copies_values_and_shares_nothing() -> None:
    source = nn.Linear(3, 2)
    target = frozen_copy(nn.Linear(3, 2))
    hard_update(target, source)
    assert torch.equal(target.weight, source.weight)
    orthogonal_(source, gain=2.0)
    assert not torch.equal(target.weight, source.weight)
