"""State dicts as libraries name them: names decide what a layer is, and what fits twice is refused.

Each source is its library's module, written plainly, with the deterministic action that the library takes.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from policy_files import perceptron, prefixed
from torch import Tensor, nn

from o2o_lightning.checkpoint.handover import read_handover
from o2o_lightning.cli.main import main
from o2o_lightning.errors import UserError
from o2o_lightning.policies.read import read_policy

STATES = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
Source = tuple[Any, Callable[[Tensor], Tensor], str]  # what is saved, its action, our family
Made = Callable[[int], Source]  # of a number of actions


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def named(**layers: nn.Module) -> dict[str, Tensor]:
    return {f"{name}.{key}": value for name, layer in layers.items() for key, value in layer.state_dict().items()}


def linears(*sizes: int) -> list[nn.Linear]:
    return [nn.Linear(sizes[i], sizes[i + 1]) for i in range(len(sizes) - 1)]


def cleanrl_sac(a: int) -> Source:
    fc1, fc2 = linears(3, 16, 16)
    mean, logstd = nn.Linear(16, a), nn.Linear(16, a)
    state = named(fc1=fc1, fc2=fc2, fc_mean=mean, fc_logstd=logstd)
    state |= {"action_scale": torch.full((1, a), 2.0), "action_bias": torch.zeros(1, a)}
    return state, lambda x: torch.tanh(mean(fc2(fc1(x).relu()).relu())), "squashed_gaussian"


def cleanrl_td3(a: int) -> Source:
    fc1, fc2, mu = linears(3, 16, 16, a)
    critic = named(fc1=nn.Linear(3 + a, 16), fc2=nn.Linear(16, 16), fc3=nn.Linear(16, 1))
    state = named(fc1=fc1, fc2=fc2, fc_mu=mu) | {"action_scale": torch.full((a,), 2.0), "action_bias": torch.zeros(a)}
    return (state, critic, critic), lambda x: torch.tanh(mu(fc2(fc1(x).relu()).relu())), "deterministic"


def cleanrl_ppo(a: int) -> Source:
    critic, actor = perceptron([3, 16, 16, 1], nn.Tanh), perceptron([3, 16, 16, a], nn.Tanh)
    state = prefixed("critic", critic.state_dict()) | prefixed("actor_mean", actor.state_dict())
    return {"actor_logstd": torch.full((1, a), -0.5), **state}, actor, "gaussian"


def spinning_up_ppo(a: int) -> Source:
    actor, critic = perceptron([3, 16, 16, a], nn.Tanh, nn.Identity), perceptron([3, 16, 1], nn.Tanh)
    state = {"pi.log_std": torch.full((a,), -0.5), **prefixed("pi.mu_net", actor.state_dict())}
    return state | prefixed("v.v_net", critic.state_dict()), actor, "gaussian"


def spinning_up_sac(a: int) -> Source:
    net, mu, log_std = perceptron([3, 16, 16], nn.ReLU, nn.ReLU), nn.Linear(16, a), nn.Linear(16, a)
    state = prefixed("pi", prefixed("net", net.state_dict()) | named(log_std_layer=log_std, mu_layer=mu))
    state |= prefixed("q1.q", perceptron([3 + a, 16, 1], nn.ReLU).state_dict())
    return state, lambda x: torch.tanh(mu(net(x))), "squashed_gaussian"


def spinning_up_td3(a: int) -> Source:
    pi = perceptron([3, 16, 16, a], nn.ReLU, nn.Tanh)
    state = prefixed("pi.pi", pi.state_dict()) | prefixed("q1.q", perceptron([3 + a, 16, 1], nn.ReLU).state_dict())
    return state, pi, "deterministic"


def pytorch_sac(a: int) -> Source:  # linear1, linear2 and two heads, the critic's Q in one file with them
    one, two = linears(3, 16, 16)
    mean, log_std = nn.Linear(16, a), nn.Linear(16, a)
    state = named(log_std_linear=log_std, mean_linear=mean, linear2=two, linear1=one)
    checkpoint = {"policy_state_dict": state, "critic_state_dict": named(linear1=nn.Linear(3 + a, 16))}
    return checkpoint, lambda x: torch.tanh(mean(two(one(x).relu()).relu())), "squashed_gaussian"


def rlkit(a: int) -> Source:
    fc0, fc1, last = linears(3, 16, 16, a)
    state = named(last_fc_log_std=nn.Linear(16, a), fc1=fc1, fc0=fc0, last_fc=last)
    return state, lambda x: torch.tanh(last(fc1(fc0(x).relu()).relu())), "squashed_gaussian"


def tianshou_sac(a: int) -> Source:
    body, mu, sigma = perceptron([3, 16, 16], nn.ReLU, nn.ReLU), nn.Linear(16, a), nn.Linear(16, a)
    state = prefixed("actor.preprocess.model.model", body.state_dict())
    state |= prefixed("actor.mu.model.0", mu.state_dict()) | prefixed("actor.sigma.model.0", sigma.state_dict())
    state |= prefixed("critic1.preprocess.model.model", perceptron([3 + a, 16], nn.ReLU).state_dict())
    return state, lambda x: torch.tanh(mu(body(x))), "squashed_gaussian"


def tianshou_td3(a: int) -> Source:
    body, last = perceptron([3, 16, 16], nn.ReLU, nn.ReLU), nn.Linear(16, a)
    own = prefixed("preprocess.model.model", body.state_dict()) | prefixed("last.model.0", last.state_dict())
    return prefixed("actor", own) | prefixed("actor_old", own), lambda x: torch.tanh(last(body(x))), "deterministic"


def sb3_ppo_weights(a: int) -> Source:
    trunk, value, head = perceptron([3, 16, 16], nn.Tanh, nn.Tanh), perceptron([3, 16, 16], nn.Tanh), nn.Linear(16, a)
    state = {"log_std": torch.full((a,), -0.5), **named(action_net=head, value_net=nn.Linear(16, 1))}
    state |= prefixed("mlp_extractor.policy_net", trunk.state_dict())
    state |= prefixed("mlp_extractor.value_net", value.state_dict())
    return state, lambda x: head(trunk(x)), "gaussian"


def sb3_sac_weights(a: int) -> Source:
    trunk, mu = perceptron([3, 16, 16], nn.ReLU, nn.ReLU), nn.Linear(16, a)
    state = prefixed("policy", named(log_std=nn.Linear(16, a), mu=mu) | prefixed("latent_pi", trunk.state_dict()))
    return state, lambda x: torch.tanh(mu(trunk(x))), "squashed_gaussian"


def skrl(a: int) -> Source:
    net, head = perceptron([3, 16, 16], nn.ELU, nn.ELU), nn.Linear(16, a)
    policy = {"log_std_parameter": torch.full((a,), -0.5), **prefixed("net_container", net.state_dict())}
    policy |= named(policy_layer=head)
    mean, variance = torch.tensor([1.0, -2.0, 0.5]).double(), torch.tensor([4.0, 0.25, 1e-4]).double()
    scaler = {"running_mean": mean, "running_variance": variance, "current_count": torch.tensor(7.0).double()}

    def action(x: Tensor) -> Tensor:
        return head(net((((x - mean) / (variance.sqrt() + 1e-8)).clamp(-5, 5)).float()))

    value = {"value": named(layer=nn.Linear(16, 1)), "value_preprocessor": scaler, "optimizer": {"state": {}}}
    return {"policy": policy, "state_preprocessor": scaler, **value}, action, "gaussian"


def rsl_rl(a: int) -> Source:
    actor, critic = perceptron([3, 16, 8, a], nn.ELU), perceptron([3, 16, 8, 1], nn.ELU)
    state = prefixed("actor", actor.state_dict()) | prefixed("critic", critic.state_dict())
    return {"model_state_dict": {"std": torch.full((a,), 0.5), **state}, "iter": 3, "infos": None}, actor, "gaussian"


def rl_games(a: int) -> Source:
    trunk, mu = perceptron([3, 16, 16], nn.ELU, nn.ELU), nn.Linear(16, a)
    mean, variance = torch.tensor([1.0, -2.0, 0.5]).double(), torch.tensor([4.0, 0.25, 1e-4]).double()
    model = prefixed("a2c_network.actor_mlp", trunk.state_dict()) | prefixed("a2c_network.mu", mu.state_dict())
    model |= {
        "a2c_network.sigma": torch.full((a,), -0.5),
        **prefixed("a2c_network.value", nn.Linear(16, 1).state_dict()),
    }
    model |= {"running_mean_std.running_mean": mean, "running_mean_std.running_var": variance}
    model |= {"running_mean_std.count": torch.tensor(9.0), "value_mean_std.running_mean": torch.zeros(1)}
    return (
        {"model": model, "epoch": 3},
        lambda x: mu(trunk(((x - mean) / (variance + 1e-5).sqrt()).clamp(-5, 5).float())),
        "gaussian",
    )


def garage(a: int) -> Source:
    one, two, out = linears(3, 16, 16, a)
    state = {"_module._init_std": torch.full((1,), -0.5)}
    for place, layer in (("_layers.0.linear", one), ("_layers.1.linear", two), ("_output_layers.0.linear", out)):
        state |= prefixed(f"_module._mean_module.{place}", layer.state_dict())
    return state, lambda x: out(two(one(x).tanh()).tanh()), "gaussian"


def official_td3(a: int) -> Source:
    one, two, three = linears(3, 16, 16, a)
    return named(l1=one, l2=two, l3=three), lambda x: torch.tanh(three(two(one(x).relu()).relu())), "deterministic"


def compiled_and_distributed(a: int) -> Source:
    saved, action, family = spinning_up_sac(a)
    return {"state_dict": prefixed("module._orig_mod", saved)}, action, family


LIBRARIES: list[Made] = [
    cleanrl_sac, cleanrl_td3, cleanrl_ppo, spinning_up_ppo, spinning_up_sac, spinning_up_td3, pytorch_sac, rlkit,
    tianshou_sac, tianshou_td3, sb3_ppo_weights, sb3_sac_weights, skrl, rsl_rl, rl_games, garage, official_td3,
    compiled_and_distributed,
]  # fmt: skip


@pytest.mark.parametrize("actions", [1, 2])
@pytest.mark.parametrize("make", LIBRARIES)
def test_a_librarys_state_dict_acts_as_its_own_module(tmp_path: Path, make: Made, actions: int) -> None:
    saved, forward, family = make(actions)
    torch.save(saved, tmp_path / "a.pt")
    out = tmp_path / "a.ckpt"
    assert main(["policy", "import", str(tmp_path / "a.pt"), "--out", str(out), "--episodes", "0"]) == 0
    source = read_handover(out)
    with torch.no_grad():
        found = source.build_actor().mode(source.build_normalizer()(STATES))
        expected = forward(STATES).float().clamp(-1, 1)
    np.testing.assert_allclose(found, expected, atol=1.2e-4)
    assert source.actor["kind"] == family
    assert json.loads(out.with_suffix(".json").read_text())["notes"]  # what the file doesn't say is said


@pytest.mark.parametrize("make", LIBRARIES)
def test_the_order_of_tensors_in_a_file_tells_nothing(tmp_path: Path, make: Made) -> None:
    saved, _, _ = make(1)
    torch.save(saved, tmp_path / "a.pt")
    torch.save(reversed_(saved), tmp_path / "b.pt")
    one, other = (read_policy(str(tmp_path / name), "state_dict") for name in ("a.pt", "b.pt"))
    states = STATES.numpy()
    np.testing.assert_array_equal(one.actions(states), other.actions(states))
    assert one.family == other.family


def reversed_(saved: Any) -> Any:
    if isinstance(saved, dict):
        return {key: reversed_(saved[key]) for key in reversed(saved)}
    return tuple(map(reversed_, saved)) if isinstance(saved, tuple) else saved


def test_the_deviation_is_read_where_its_name_says_so() -> None:
    half = {cleanrl_ppo: -0.5, spinning_up_ppo: -0.5, garage: -0.5, rl_games: -0.5, rsl_rl: np.log(0.5)}
    for make, expected in half.items():
        assert log_std(make(2)[0]) == pytest.approx([expected] * 2)


def log_std(saved: Any) -> Any:
    from o2o_lightning.policies.layers import take_apart
    from o2o_lightning.policies.state_dict import _statistics, acting

    state = acting(saved)
    _statistics(state)
    return take_apart(state).log_std


BODY = {"body.0.weight": torch.randn(8, 3), "body.0.bias": torch.zeros(8)}


def layer(name: str, rows: int = 1, width: int = 8) -> dict[str, Tensor]:
    return {f"{name}.weight": torch.randn(rows, width), f"{name}.bias": torch.randn(rows)}


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (BODY | layer("pi") | layer("v"), "'v', a value of states, it has no log σ"),
        (BODY | layer("mu") | layer("std"), "'std' gives σ"),
        (BODY | layer("head_a") | layer("head_b"), "'head_a' and 'head_b' fit alike"),
        (BODY | layer("mu") | layer("action"), "fit alike"),
        (BODY | layer("heads.0") | layer("heads.1"), "'heads.0' and 'heads.1' fit alike"),
        (BODY | layer("mu") | {"log_std": torch.zeros(1), "other": torch.zeros(1)}, "'other'"),
        (BODY | layer("mu") | {"sigma": torch.ones(1)}, "σ or log σ"),
        (BODY | layer("mu") | {"std": -torch.ones(1)}, "σ or log σ"),
        (BODY | layer("mu") | layer("log_std.0", 8) | layer("log_std.2"), "not understood"),
        (BODY | {"norm.weight": torch.ones(8), "norm.bias": torch.ones(8)} | layer("mu"), "a normalisation"),
        (layer("net.0", 8, 3) | layer("net.4", 8) | layer("net.6"), "missing"),
        ({"policy": BODY | layer("mu"), "actor": BODY | layer("mu")}, "'actor' and 'policy' could each be"),
        ({f"net.{2 * i}.weight": torch.ones(1, 1) for i in range(1001)}, "1,001 tensors"),
        ({"log_std.weight": torch.zeros(2, 3)}, "no layer tells their mean"),
    ],
)  # fmt: skip
def test_two_readings_or_none_are_refused_by_name(tmp_path: Path, state: dict[str, Any], said: str) -> None:
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(UserError) as caught:
        read_policy(str(tmp_path / "a.pt"), "state_dict")
    assert said in str(caught.value)


def test_an_actor_critic_without_a_deviation_is_read_when_its_family_is_told(tmp_path: Path) -> None:
    state = BODY | layer("pi") | layer("v")
    torch.save(state, tmp_path / "a.pt")
    policy = read_policy(str(tmp_path / "a.pt"), "state_dict", family="deterministic")
    np.testing.assert_array_equal(policy.mean[0], state["pi.weight"].double())


def test_a_log_variance_is_two_log_deviations(tmp_path: Path) -> None:
    torch.save(BODY | layer("mu", 2) | {"log_var": torch.tensor([-1.0, 2.0])}, tmp_path / "a.pt")
    policy = read_policy(str(tmp_path / "a.pt"), "state_dict")
    assert isinstance(policy.log_std, np.ndarray) and policy.log_std.tolist() == [-0.5, 1.0]


def test_actions_scaled_to_another_range_than_the_environments_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved, _, _ = cleanrl_sac(1)
    for scale, expected in ((1.0, 2), (2.0, 0)):  # Pendulum-v1 takes ±2
        torch.save(saved | {"action_scale": torch.full((1,), scale)}, tmp_path / "a.pt")
        options = ["--env_id", "Pendulum-v1", "--episodes", "0", "--out", str(tmp_path / "a.ckpt")]
        assert main(["policy", "import", str(tmp_path / "a.pt"), *options]) == expected
        assert ("scaled to" in capsys.readouterr().err) == (expected == 2)


def test_a_tensor_that_declares_more_than_it_holds_takes_no_memory(tmp_path: Path) -> None:
    wide = torch.zeros(1).expand(60_000, 60_000)
    torch.save(layer("net.0", 8, 3) | {"net.2.weight": wide, "net.2.bias": wide[0]}, tmp_path / "a.pt")
    torch.save({"net.0.weight": torch.ones(1, 3), "x": bytearray(10)}, tmp_path / "b.pt")
    for name, said in (("a.pt", "holds less"), ("b.pt", "byte arrays")):
        with pytest.raises(UserError, match=said):
            read_policy(str(tmp_path / name), "state_dict")
