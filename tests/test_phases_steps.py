"""What a step is made of: no product too many, torch's own Adam, noise that no chunk changes, views of the weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import by_hand
import numpy as np
import pytest
import sac_by_hand as sac
import td3_by_hand as td3
import torch
from by_hand import HIDDEN, SECOND, A, S, cached, ready, transitions
from tensordict import TensorDict
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from o2o_lightning.checkpoint.handover import Handover
from o2o_lightning.engine.engine import Engine
from o2o_lightning.engine.noise import NoiseBlocks
from o2o_lightning.errors import UserError
from o2o_lightning.methods.cql import CQL
from o2o_lightning.methods.iql import IQL
from o2o_lightning.methods.method import Normal, Uniform
from o2o_lightning.methods.o2 import sac as o2sac
from o2o_lightning.methods.o2 import td3 as o2td3
from o2o_lightning.methods.td3_bc import TD3BC
from o2o_lightning.nn.mlp import MLP
from o2o_lightning.nn.optimizers import Adam
from o2o_lightning.nn.squashed_gaussian import SquashedGaussianActor

# ---- matrix products ---------------------------------------------------------------------------------------------

N = 4
ACTOR, DETERMINISTIC, CRITIC, VALUE = (
    [inputs, *HIDDEN, outputs] for inputs, outputs in ((S, 2 * A), (S, A), (S + A, 1), (S, 1))
)


def forward(widths: list[int], rows: int) -> int:
    return sum(2 * rows * i * o for i, o in pairwise(widths))


def trained(widths: list[int], rows: int) -> int:
    """Forward, the gradient of each weight, and that of each layer's input but the first's."""
    return 3 * forward(widths, rows) - forward(widths[:2], rows)


def climbed(widths: list[int], rows: int) -> int:
    """Forward, and the gradient of each layer's input: none of any weight."""
    return 2 * forward(widths, rows)


def of_sac(method: Any, **options: Any) -> tuple[Any, TensorDict]:
    method = sac.ready(method, **options)
    return method, cached(method, sac.draw())


def of_td3(method: Any, **options: Any) -> tuple[Any, TensorDict]:
    method = td3.ready(method, **options)
    return method, cached(method, td3.draw())


B, C = sac.B, td3.B
LEAST: dict[str, tuple[Callable[[], tuple[Any, TensorDict]], int]] = {
    "SAC": (
        lambda: (sac.online(), transitions(sac.draw())),
        trained(ACTOR, B) + 3 * forward(ACTOR, B)  # π(s); π(s'), π_ref(s), π_ref(s')
        + 2 * (trained(CRITIC, B) + climbed(CRITIC, B) + forward(CRITIC, B)),
    ),
    "SAC re-evaluation": (
        lambda: of_sac(o2sac.Reevaluate(hidden=HIDDEN)),
        2 * (trained(CRITIC, B) + forward(CRITIC, B)),  # no policy at all
    ),
    "SAC alignment": (
        lambda: of_sac(o2sac.Align()),
        trained(ACTOR, B) + 2 * (trained(CRITIC, 2 * B) + climbed(CRITIC, B) + forward(CRITIC, B)),
    ),
    "CQL": (
        lambda: of_sac(CQL(samples=N), layer_norm=False),
        trained(ACTOR, B) + forward(ACTOR, B)  # one pass for each set of states, not one a draw
        + 2 * (trained(CRITIC, B) + trained(CRITIC, 3 * N * B) + climbed(CRITIC, B) + forward(CRITIC, B)),
    ),
    "TD3": (
        lambda: (td3.online(), transitions(td3.draw())),
        3 * forward(DETERMINISTIC, C) + 2 * (trained(CRITIC, C) + forward(CRITIC, C))
        + trained(DETERMINISTIC, C) + forward(DETERMINISTIC, C) + climbed(CRITIC, C),
    ),
    "TD3 re-evaluation": (
        lambda: of_td3(o2td3.Reevaluate(hidden=HIDDEN)),
        2 * (trained(CRITIC, C) + forward(CRITIC, C)),
    ),
    "TD3 alignment": (
        lambda: of_td3(o2td3.Align()),
        trained(DETERMINISTIC, C) + climbed(CRITIC, C) + 2 * (trained(CRITIC, 2 * C) + forward(CRITIC, C)),
    ),
    "TD3+BC": (
        lambda: of_td3(TD3BC(), layer_norm=False),
        forward(DETERMINISTIC, C) + 2 * (trained(CRITIC, C) + forward(CRITIC, C))
        + trained(DETERMINISTIC, C) + climbed(CRITIC, C),
    ),
    "IQL": (
        lambda: (ready(IQL(hidden=HIDDEN)), transitions(by_hand.draw(0, B))),
        trained(DETERMINISTIC, B) + trained(VALUE, B) + forward(VALUE, B)
        + 2 * (trained(CRITIC, B) + forward(CRITIC, B)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LEAST)
def test_a_step_makes_no_matrix_product_that_its_mathematics_does_not_need(name: str) -> None:
    (method, batch), expected = LEAST[name][0](), LEAST[name][1]
    noise = by_hand.noise_of(method, batch["action"].shape)
    with FlopCounterMode(display=False) as counter:
        for loss in Engine(method).losses(SECOND, batch, noise):
            method.zero_grad(set_to_none=True)
            loss.value.backward()
    assert counter.get_total_flops() == expected


# ---- Adam --------------------------------------------------------------------------------------------------------


def groups() -> list[dict[str, Any]]:
    torch.manual_seed(0)
    nets = [nn.Linear(7, 5), nn.Linear(5, 3), nn.Linear(3, 2)]
    return [{"params": list(net.parameters()), "lr": 0.01 * (i + 1)} for i, net in enumerate(nets)]


def descend(optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        torch.manual_seed(100 + step)
        optimizer.zero_grad()
        for i, group in enumerate(optimizer.param_groups):
            for parameter in group["params"]:
                gradient = torch.randn_like(parameter)
                # the second group learns at every second step, the third now and then and not as a whole
                if i == 0 or (i == 1 and step % 2) or (i == 2 and step % 5 == 4 and parameter.ndim == 2):
                    parameter.grad = gradient
        optimizer.param_groups[0]["lr"] *= 0.9
        optimizer.step()


def weights(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def test_adam_is_torch_s_own_to_the_last_bit_also_after_a_state_was_loaded() -> None:
    ours, theirs = Adam(groups(), eps=1e-5), torch.optim.Adam(groups(), eps=1e-5, fused=True)
    for optimizer in (ours, theirs):
        descend(optimizer, range(8))
    assert all(torch.equal(a, b) for a, b in zip(weights(ours), weights(theirs), strict=True))
    saved, other = copy.deepcopy(ours.state_dict()), copy.deepcopy(theirs.state_dict())
    for optimizer, state in ((ours, saved), (theirs, other)):
        descend(optimizer, range(8, 11))
        optimizer.load_state_dict(state)
        descend(optimizer, range(11, 16))
    assert all(torch.equal(a, b) for a, b in zip(weights(ours), weights(theirs), strict=True))
    assert ours.state_dict()["state"].keys() == theirs.state_dict()["state"].keys()


def test_adam_takes_moments_of_another_memory_layout() -> None:
    ours, theirs = (Adam([{"params": [nn.Parameter(torch.ones(4, 3).t())], "lr": 0.1}]) for _ in range(2))
    for optimizer in (ours, theirs):
        descend(optimizer, range(3))
    state = copy.deepcopy(ours.state_dict())
    for name in ("exp_avg", "exp_avg_sq"):
        state["state"][0][name] = state["state"][0][name].contiguous()
    ours.load_state_dict(state)
    for optimizer in (ours, theirs):
        descend(optimizer, range(3, 6))
    assert torch.equal(weights(ours)[0], weights(theirs)[0])


def test_carried_moments_and_their_count_go_where_the_parameters_are() -> None:
    net = nn.Linear(3, 2, device="meta")
    optimizer = Adam([{"params": list(net.named_parameters("method")), "lr": 0.1, "name": "net"}])
    state = {"exp_avg": torch.ones(2, 3), "exp_avg_sq": torch.ones(2, 3), "step": torch.tensor(5.0)}
    Handover.carry_moments(SimpleNamespace(adam={"weight": state}), optimizer)  # type: ignore[arg-type]
    assert {value.device.type for value in optimizer.state[net.weight].values()} == {"meta"}
    assert net.bias not in optimizer.state


@pytest.mark.parametrize("found_inf", [0.0, 1.0])
@pytest.mark.parametrize("scale", [None, 8.0])
def test_adam_unscales_and_refuses_as_torch_s_own(scale: float | None, found_inf: float) -> None:
    ours, theirs = Adam(groups()), torch.optim.Adam(groups(), fused=True)
    for optimizer in (ours, theirs):
        descend(optimizer, range(6))
        optimizer.grad_scale = None if scale is None else torch.tensor(scale)
        optimizer.found_inf = torch.tensor(found_inf)
        descend(optimizer, range(6, 12))
        del optimizer.grad_scale, optimizer.found_inf
        descend(optimizer, range(12, 14))
    assert all(torch.equal(a, b) for a, b in zip(weights(ours), weights(theirs), strict=True))


# ---- noise -------------------------------------------------------------------------------------------------------


def noise(seed: int = 3) -> NoiseBlocks:
    return NoiseBlocks(seed, torch.device("cpu"))


def test_noise_is_standard_normal_and_uniform_on_both_sides_of_zero() -> None:
    source, wanted = noise(), {"normal": Normal((50, 3)), "uniform": Uniform((50, 3))}
    drawn = [source.draw(wanted) for _ in range(200)]
    normal, uniform = (torch.stack([one[name] for one in drawn]) for name in wanted)
    assert abs(float(normal.mean())) < 0.03 and abs(float(normal.std()) - 1.0) < 0.03
    assert abs(float(uniform.mean())) < 0.02 and abs(float(uniform.var()) - 1 / 3) < 0.01  # of U(−1, 1)
    assert -1.0 <= float(uniform.min()) < -0.99 and 0.99 < float(uniform.max()) < 1.0
    assert len(torch.unique(normal)) > 0.99 * normal.numel()  # no number is handed out twice


def test_two_draws_of_one_shape_are_not_the_same_numbers() -> None:
    drawn = noise().draw({"policy": Normal((4, 2)), "target": Normal((4, 2))})
    assert len(torch.unique(torch.stack(list(drawn.values())))) == 16


def test_noise_of_another_kind_of_device_is_refused_in_one_line() -> None:
    state = noise().state() | {"generator": torch.zeros(16, dtype=torch.uint8)}  # as CUDA's is: a seed and an offset
    with pytest.raises(UserError, match="began on another kind of device than cpu"):
        noise().load_state(state)


def test_noise_goes_on_in_the_middle_of_a_block() -> None:
    first, second = noise(), noise(9)
    for _ in range(21):
        first.draw({"normal": Normal((4, 2))})
    first.draw({"uniform": Uniform((3,))})
    second.load_state(first.state())
    for _ in range(30):
        one, other = (source.draw({"normal": Normal((4, 2)), "uniform": Uniform((3,))}) for source in (first, second))
        assert all(torch.equal(one[name], other[name]) for name in ("normal", "uniform"))


# ---- views of the weights ----------------------------------------------------------------------------------------


def assert_all_passes_use_the_weights(net: MLP) -> None:
    x = torch.randn(5, dtype=net.linears[0].weight.dtype)
    layers = [torch.nn.Linear(*linear.weight.T.shape).to(x.dtype) for linear in net.linears]
    for layer, linear in zip(layers, net.linears, strict=True):
        layer.load_state_dict(linear.state_dict())
    expected = x
    for layer in layers[:-1]:
        expected = (torch.relu if net.activation == "relu" else torch.tanh)(layer(expected))
    expected = layers[-1](expected)
    for found in (net(x), net(x, frozen=True), torch.from_numpy(net.numpy(x.numpy()))):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_each_pass_follows_the_weights_whatever_happens_to_them(activation: str) -> None:
    net = MLP(5, (8, 8), 2, activation=activation)
    assert_all_passes_use_the_weights(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1.0)
    assert_all_passes_use_the_weights(net)
    other = copy.deepcopy(net)
    with torch.no_grad():
        other.linears[0].weight.mul_(-1.0)
    assert_all_passes_use_the_weights(other)
    assert_all_passes_use_the_weights(net)
    doubled = {name: 2.0 * parameter for name, parameter in net.named_parameters()}
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.0)
        other.load_state_dict(doubled)
        x = torch.randn(3, 5)
        assert torch.equal(torch.func.functional_call(net, doubled, x), other(x))
    assert_all_passes_use_the_weights(net)
    net.load_state_dict(MLP(5, (8, 8), 2).state_dict())
    assert_all_passes_use_the_weights(net)
    assert_all_passes_use_the_weights(net.double())


def test_exploration_is_the_policy_s_sample_of_the_same_noise() -> None:
    torch.manual_seed(0)
    actor, observation = SquashedGaussianActor(S, A, (16, 12)), torch.randn(6, S)
    drawn = np.random.default_rng(0).standard_normal((6, A), dtype=np.float32)
    expected = actor.sampled(observation, torch.from_numpy(drawn)).detach().numpy()
    found = actor.explore(observation.numpy(), np.random.default_rng(0))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
