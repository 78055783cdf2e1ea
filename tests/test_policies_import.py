"""Policies of other libraries: is what was imported what the user had?"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import onnxruntime
import pytest
import torch
from policy_files import (
    ACTIONS,
    OBSERVATIONS,
    box,
    d4rl_file,
    perceptron,
    prefixed,
    sb3_ppo,
    sb3_sac,
    sb3_td3,
    sb3_zip,
    vecnormalize,
)
from torch import Tensor, nn

from o2o_lightning.checkpoint.handover import read_handover
from o2o_lightning.cli.main import main
from o2o_lightning.nn.actor import FloatArray
from o2o_lightning.policies.d4rl_group import policy_group
from o2o_lightning.policies.read import read_policy
from o2o_lightning.policies.statistics import read_statistics

STATES = torch.randn(200, OBSERVATIONS, generator=torch.Generator().manual_seed(0))
Source = tuple[dict[str, Tensor], Callable[[Tensor], Tensor]]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def bring(tmp_path: Path, file: Path | str, *options: str) -> dict[str, Any]:
    """Imports ``file`` without evaluating it and returns the report."""
    arguments = ["policy", "import", str(file), "--run_dir", str(tmp_path / "run"), "--episodes", "0", *options]
    assert main(arguments) == 0
    found: dict[str, Any] = json.loads((tmp_path / "run/import/summary.json").read_text())
    return found


def imported(tmp_path: Path, states: Tensor = STATES) -> FloatArray:
    """Actions of the imported policy, from its checkpoint alone."""
    source = read_handover(tmp_path / "run/import/checkpoints/last.ckpt")
    with torch.no_grad():
        return source.build_actor().mode(source.build_normalizer()(states)).numpy()


@pytest.mark.parametrize(
    ("make", "module", "family"),
    [
        (sb3_sac, "stable_baselines3.sac.policies", "squashed_gaussian"),
        (sb3_sac, "sb3_contrib.tqc.policies", "squashed_gaussian"),
        (sb3_td3, "stable_baselines3.td3.policies", "deterministic"),
        (sb3_ppo, "stable_baselines3.common.policies", "gaussian"),
    ],
)
def test_a_stable_baselines3_policy_acts_as_its_own_network_does(
    tmp_path: Path, make: Callable[[], Source], module: str, family: str
) -> None:
    state, forward = make()
    with torch.no_grad():
        expected = forward(STATES)
    if family == "gaussian":  # in Pendulum's units of ±2, clipped
        expected = (expected / 2).clamp(-1, 1)
    np.savez(tmp_path / "reference.npz", observations=STATES.numpy(), actions=2 * expected.numpy())
    options = ("--env_id", "Pendulum-v1", "--reference", str(tmp_path / "reference.npz"))
    report = bring(tmp_path, sb3_zip(tmp_path / "agent.zip", state, module), *options)
    np.testing.assert_allclose(imported(tmp_path), expected, atol=1e-5)
    assert report["kind"] == family and report["parity"]["same"] and report["verdict"].startswith("same actions as")
    assert report["env_id"] == "Pendulum-v1"
    if "common" not in module:
        assert report["algorithm"] == module.split(".")[1]


def test_ddpg_is_td3_of_one_update_a_step(tmp_path: Path) -> None:
    file = sb3_zip(tmp_path / "agent.zip", sb3_td3()[0], "stable_baselines3.td3.policies", policy_delay=1)
    assert read_policy(str(file), "sb3").algorithm == "ddpg"


def test_a_saturated_action_is_the_bound_itself_in_the_file_and_out_of_it(tmp_path: Path) -> None:
    state, forward = sb3_sac()
    state["actor.mu.bias"].fill_(20.0)
    with torch.no_grad():
        torch.testing.assert_close(forward(STATES), torch.ones(len(STATES), 1))
    bring(tmp_path, sb3_zip(tmp_path / "agent.zip", state), "--env_id", "Pendulum-v1")
    np.testing.assert_allclose(imported(tmp_path), 1.0, atol=1e-6)
    checkpoint, out = tmp_path / "run/import/checkpoints/last.ckpt", tmp_path / "policy.onnx"
    assert main(["policy", "export", str(checkpoint), "--format", "onnx", "--out", str(out)]) == 0
    session = onnxruntime.InferenceSession(str(out))
    np.testing.assert_allclose(session.run(None, {"observation": STATES.numpy()})[0], 2.0, atol=2e-6)


def test_the_log_density_of_a_squashed_gaussian_is_imported_too(tmp_path: Path) -> None:
    state, _ = sb3_sac()
    bring(tmp_path, sb3_zip(tmp_path / "agent.zip", state), "--env_id", "Pendulum-v1")
    actor = read_handover(tmp_path / "run/import/checkpoints/last.ckpt").build_actor()
    hidden = STATES
    for i in (0, 2):
        weight, bias = state[f"actor.latent_pi.{i}.weight"], state[f"actor.latent_pi.{i}.bias"]
        hidden = torch.relu(hidden @ weight.T + bias)
    expected = (hidden @ state["actor.log_std.weight"].T + state["actor.log_std.bias"]).clamp(-20, 2)
    torch.testing.assert_close(actor(STATES).log_std, expected, atol=1e-5, rtol=1e-5)


def test_ppos_deviation_is_in_units_of_half_the_action_range(tmp_path: Path) -> None:
    bring(tmp_path, sb3_zip(tmp_path / "agent.zip", sb3_ppo()[0]), "--env_id", "Pendulum-v1")
    actor = read_handover(tmp_path / "run/import/checkpoints/last.ckpt").build_actor()
    assert float(actor(STATES)[1][0].exp()) == pytest.approx(np.exp(-0.7) / 2)


def test_a_range_of_one_that_the_zip_names_is_not_the_environments_own(tmp_path: Path) -> None:
    state, forward = sb3_ppo()
    file = sb3_zip(tmp_path / "agent.zip", state, action_space=box(bound=1.0))  # as under RescaleAction
    bring(tmp_path, file, "--env_id", "Pendulum-v1")
    with torch.no_grad():
        np.testing.assert_allclose(imported(tmp_path), forward(STATES).clamp(-1, 1), atol=1e-5)


def test_a_policy_that_we_wrote_into_a_dataset_comes_back_as_it_was(tmp_path: Path) -> None:
    state, forward = sb3_ppo()
    bring(tmp_path, sb3_zip(tmp_path / "agent.zip", state), "--env_id", "Pendulum-v1")
    source = read_handover(tmp_path / "run/import/checkpoints/last.ckpt")
    file, _ = d4rl_file(tmp_path / "data.hdf5")
    with h5py.File(file, "a") as opened:
        del opened["metadata/policy"]
        for name, value in policy_group(source.build_actor(), source.build_normalizer()).items():
            opened[f"metadata/policy/{name}"] = value
    assert bring(tmp_path / "again", file)["env_id"] == "Pendulum-v1"
    with torch.no_grad():
        expected = (forward(STATES) / 2).clamp(-1, 1)
    np.testing.assert_allclose(imported(tmp_path / "again"), expected, atol=1e-5)


@pytest.mark.parametrize(("name", "layer"), [("ReLU", nn.ReLU), ("ELU", nn.ELU), ("Tanh", nn.Tanh), ("GELU", nn.GELU)])
def test_the_activation_is_read_from_the_zips_plain_strings(tmp_path: Path, name: str, layer: type[nn.Module]) -> None:
    state, forward = sb3_ppo(layer)
    arguments = {":serialized:": "gAWV", "activation_fn": f"<class 'torch.nn.modules.activation.{name}'>"}
    space = box(bound=1.0)
    file = sb3_zip(tmp_path / "agent.zip", state, policy_kwargs=arguments, action_space=space)
    report = bring(tmp_path, file)
    with torch.no_grad():
        np.testing.assert_allclose(imported(tmp_path), forward(STATES).clamp(-1, 1), atol=1e-5)
    assert report["activation"] == name.lower() and not any("activation" in note for note in report["notes"])


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_the_statistics_of_vecnormalize_are_part_of_the_policy(tmp_path: Path, protocol: int) -> None:
    state, forward = sb3_sac()
    mean, var = np.array([1.0, -2.0, 0.5]), np.array([4.0, 0.25, 1e-6])
    statistics = vecnormalize(tmp_path / "stats.pkl", mean, var, protocol)
    bring(tmp_path, sb3_zip(tmp_path / "agent.zip", state), "--normalizer", str(statistics))
    normalized = ((STATES.double() - torch.from_numpy(mean)) / torch.from_numpy(var + 1e-8).sqrt()).clamp(-10, 10)
    assert float(normalized.abs().max()) == 10.0  # the clip is at work
    with torch.no_grad():
        np.testing.assert_allclose(imported(tmp_path), forward(normalized.float()), atol=1.2e-4)


def test_statistics_may_be_json_or_npz(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"mean": [1.0, 2.0], "var": [4.0, 9.0], "epsilon": 0.0, "clip_obs": 5}))
    np.savez(tmp_path / "a.npz", mean=np.array([1.0, 2.0]), std=np.array([2.0, 3.0]), clip=5.0)
    for name in ("a.json", "a.npz"):
        found, left = read_statistics(tmp_path / name)
        assert left == []
        assert found.mean.tolist() == [1.0, 2.0] and found.std.tolist() == [2.0, 3.0] and found.clip == 5.0


def test_statistics_beside_the_zip_are_taken_and_said(tmp_path: Path) -> None:
    file = sb3_zip(tmp_path / "agent.zip", sb3_sac()[0])
    vecnormalize(tmp_path / "agent.vecnormalize.pkl", np.ones(3), np.ones(3))
    report = bring(tmp_path, file)
    assert any("agent.vecnormalize.pkl" in note for note in report["notes"])
    assert read_handover(tmp_path / "run/import/checkpoints/last.ckpt").build_normalizer().mean.tolist() == [1.0] * 3


@pytest.mark.parametrize(("zipped", "beside"), [
    ("Walker-v3_1/Walker-v3.zip", "Walker-v3_1/Walker-v3/vecnormalize.pkl"),  # rl-zoo3
    ("Walker-v3_1/best_model.zip", "Walker-v3_1/Walker-v3/vecnormalize.pkl"),
    ("ppo-Walker-v3.zip", "vec_normalize.pkl"),  # the hub
    ("rl_model_10_steps.zip", "rl_model_vecnormalize_10_steps.pkl"),  # CheckpointCallback
])  # fmt: skip
def test_statistics_are_found_where_other_programs_put_them(zipped: str, beside: str, tmp_path: Path) -> None:
    for name in (zipped, beside):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    vecnormalize(tmp_path / beside, np.ones(3), np.ones(3))
    policy = read_policy(str(sb3_zip(tmp_path / zipped, sb3_sac()[0])), "sb3")
    assert policy.normalizer is not None and policy.normalizer.mean.tolist() == [1.0] * 3


PARTS = {"z": 1, "a": 2}


def dict_space() -> dict[str, Any]:
    parts = ", ".join(f"'{name}': Box(-inf, inf, ({width},), float32)" for name, width in PARTS.items())
    return {":type:": "<class 'gymnasium.spaces.dict.Dict'>", "spaces": f"{{{parts}}}"}


def test_a_zip_tells_the_order_of_its_dictionary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = sb3_zip(tmp_path / "agent.zip", sb3_sac()[0], observation_space=dict_space())
    bring(tmp_path, file)
    assert read_handover(tmp_path / "run/import/checkpoints/last.ckpt").layout == ["z", "a"]
    assert main(["policy", "import", str(file), "--layout", "a,z", "--out", str(tmp_path / "x.ckpt")]) == 2
    assert "itself says z,a" in capsys.readouterr().err


@pytest.mark.parametrize("keys", [("z", "a"), ("a",)])
def test_a_dictionarys_part_without_statistics_is_taken_as_it_is(keys: tuple[str, ...], tmp_path: Path) -> None:
    state, forward = sb3_sac()
    mean, var = np.array([1.0, -2.0, 0.5]), np.array([4.0, 0.25, 9.0])  # of z, a, a
    taken = [i for i, name in enumerate(("z", "a", "a")) if name in keys]
    file = sb3_zip(tmp_path / "agent.zip", state, observation_space=dict_space())
    beside = tmp_path / "agent.vecnormalize.pkl"
    columns = {"z": slice(0, 1), "a": slice(1, 3)}
    vecnormalize(beside, {k: mean[columns[k]] for k in keys}, {k: var[columns[k]] for k in keys}, clip_obs=2.0)
    report = bring(tmp_path, file)
    expected = STATES.clone()
    shift, scale = torch.from_numpy(mean)[taken], torch.from_numpy(var)[taken].sqrt()
    expected[:, taken] = ((expected[:, taken] - shift) / scale).float().clamp(-2, 2)
    inside = (STATES.abs() < 2).all(1)  # beyond, what is not normalised is clipped here too
    with torch.no_grad():
        np.testing.assert_allclose(imported(tmp_path)[inside], forward(expected)[inside], atol=1.2e-4)
    assert any("z are not normalised, but clipped" in note for note in report["notes"]) == (keys == ("a",))


def test_batch_renormalisation_becomes_part_of_the_layers(tmp_path: Path) -> None:
    class Renormalised(nn.Module):  # as sb3-contrib names its tensors
        def __init__(self, width: int) -> None:
            super().__init__()
            self.scale, self.bias = nn.Parameter(torch.randn(width)), nn.Parameter(torch.randn(width))
            self.register_buffer("ra_mean", torch.randn(width))
            self.register_buffer("ra_var", torch.rand(width) + 0.1)
            self.register_buffer("steps", torch.tensor(7))

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * (x - self.ra_mean) / (self.ra_var + 0.01).sqrt() + self.bias

    parts = [Renormalised(3), nn.Linear(3, 16), nn.ReLU(), Renormalised(16), nn.Linear(16, 8), nn.ReLU()]
    trunk, mean, spread = nn.Sequential(*parts, Renormalised(8)), nn.Linear(8, 1), nn.Linear(8, 1)
    state = {**prefixed("actor.latent_pi", trunk.state_dict()), **prefixed("actor.mu", mean.state_dict())}
    state |= prefixed("actor.log_std", spread.state_dict())
    options = {"policy_kwargs": {"batch_norm_eps": 0.01}}
    report = bring(tmp_path, sb3_zip(tmp_path / "agent.zip", state, "sb3_contrib.crossq.policies", **options))
    actor = read_handover(tmp_path / "run/import/checkpoints/last.ckpt").build_actor()
    with torch.no_grad():
        np.testing.assert_allclose(imported(tmp_path), torch.tanh(mean(trunk(STATES))), atol=1.1e-4)
        torch.testing.assert_close(actor(STATES).log_std, spread(trunk(STATES)).clamp(-20, 2), atol=1e-4, rtol=1e-4)
    assert (report["algorithm"], report["hidden"]) == ("crossq", [16, 8])


@pytest.mark.parametrize("order", [("a", "observation"), ("observation", "a")])
def test_a_time_feature_that_the_configuration_tells_of_is_held_where_the_dataset_lacks_it(
    order: tuple[str, ...], tmp_path: Path
) -> None:
    state, forward = sb3_sac()
    widths = {"a": 1, "observation": 2}  # its last is the remaining time
    parts = ", ".join(f"'{name}': Box(-inf, inf, ({widths[name]},), float32)" for name in order)
    space = {":type:": "<class 'gymnasium.spaces.dict.Dict'>", "spaces": f"{{{parts}}}"}
    file = sb3_zip(tmp_path / "Reach-v1.zip", state, observation_space=space)
    (tmp_path / "Reach-v1").mkdir()
    said = "!!python/object/apply:collections.OrderedDict\n- - - env_wrapper\n    - utils.wrappers.TimeFeatureWrapper\n"
    (tmp_path / "Reach-v1/config.yml").write_text(said)
    whole = bring(tmp_path, file)
    assert whole["observation_dim"] == 3 and any("remaining time" in note for note in whole["notes"])
    with h5py.File(tmp_path / "data.hdf5", "w") as data:
        data["observations"], data["actions"] = STATES[:50, :2].numpy(), np.zeros((50, 1), np.float32)
        data["rewards"], data["terminals"] = np.zeros(50, np.float32), np.zeros(50, np.bool_)
    report = bring(tmp_path / "held", file, "--dataset", str(tmp_path / "data.hdf5"))
    column = 2 if order[-1] == "observation" else 1
    given = torch.ones(200, 3)
    given[:, [i for i in range(3) if i != column]] = STATES[:, :2]
    with torch.no_grad():
        np.testing.assert_allclose(imported(tmp_path / "held", STATES[:, :2]), forward(given), atol=1.2e-4)
    assert report["verdict"].startswith("with its remaining-time input held at 1")


def test_a_reference_with_the_remaining_time_proves_the_policy_before_it_is_held(tmp_path: Path) -> None:
    state, forward = sb3_sac()
    file = sb3_zip(tmp_path / "agent.zip", state, action_space=box(bound=1.0))
    (tmp_path / "config.yml").write_text("env_wrapper: sb3_contrib.common.wrappers.TimeFeatureWrapper")
    with torch.no_grad():
        actions = forward(STATES).numpy()
    options = ("--env_id", "MountainCarContinuous-v0", "--reference", str(tmp_path / "reference.npz"))
    np.savez(tmp_path / "reference.npz", observations=STATES.numpy(), actions=actions)
    report = bring(tmp_path, file, *options)
    assert report["observation_dim"] == 2 and report["proof"]["largest"] < 1e-5
    assert "input held at 1: same actions, before that, as" in report["verdict"]
    np.savez(tmp_path / "reference.npz", observations=STATES.numpy(), actions=-actions)
    argv = ["policy", "import", str(file), "--run_dir", str(tmp_path / "other"), *options]
    assert main(argv) == 2 and not (tmp_path / "other").exists()


def test_the_environments_arguments_go_into_the_evaluation_and_the_checkpoint(tmp_path: Path) -> None:
    options = ["--env_id", "Pendulum-v1", "--env_kwargs", "{max_episode_steps: 7, g: 0.0}", "--states", "9"]
    file = sb3_zip(tmp_path / "agent.zip", sb3_sac()[0])
    assert main(["policy", "import", str(file), "--run_dir", str(tmp_path / "run"), *options]) == 0
    source = read_handover(tmp_path / "run/import/checkpoints/last.ckpt")
    assert source.kwargs_in("Pendulum-v1") == {"max_episode_steps": 7, "g": 0.0}
    score = json.loads((tmp_path / "run/import/summary.json").read_text())["score"]
    worst = math.pi**2 + 0.1 * 8**2 + 0.001 * 2**2  # Pendulum's largest cost of a step
    assert min(score["returns"]) > -7 * worst and score["return_std"] == pytest.approx(np.std(score["returns"]))


@pytest.mark.parametrize("clip", [0.5, 2.0])
def test_the_mean_of_gsde_is_imported_and_its_noise_is_a_constant(clip: float, tmp_path: Path) -> None:
    trunk, mean = perceptron([OBSERVATIONS, 16, 8, 8], nn.ReLU)[:4], nn.Linear(8, ACTIONS)
    nn.init.normal_(mean.weight, std=2.0)
    deviation = torch.full((8, ACTIONS), 0.3)
    state = {
        "actor.log_std": deviation.log(),
        **prefixed("actor.latent_pi", trunk.state_dict()),
        **prefixed("actor.mu.0", mean.state_dict()),
    }
    report = bring(tmp_path, sb3_zip(tmp_path / "agent.zip", state, policy_kwargs={"clip_mean": clip}))
    with torch.no_grad():
        expected = torch.tanh(mean(trunk(STATES)).clamp(-clip, clip))
        noise = (trunk(STATES).square() @ deviation.square() + 1e-6).mean(0).sqrt()
    assert float(expected.abs().max()) == pytest.approx(np.tanh(clip))
    np.testing.assert_allclose(imported(tmp_path), expected, atol=1e-6)
    actor = read_handover(tmp_path / "run/import/checkpoints/last.ckpt").build_actor()
    np.testing.assert_allclose(actor(STATES).log_std.exp().mean(0).detach(), noise, rtol=0.2)  # other states
    assert report["verdict"].startswith("with its exploration replaced")


def test_a_linear_ars_policy_is_a_clipped_linear_mean(tmp_path: Path) -> None:
    weight = torch.randn(ACTIONS, OBSERVATIONS)
    file = sb3_zip(tmp_path / "agent.zip", {"action_net.weight": weight}, "sb3_contrib.ars.policies")
    report = bring(tmp_path, file)
    np.testing.assert_allclose(imported(tmp_path), (STATES @ weight.T / 2).clamp(-1, 1), atol=1e-6)
    assert (report["algorithm"], report["hidden"]) == ("ars", [])


def test_a_vecnormalize_of_rewards_alone_beside_the_zip_normalises_nothing(tmp_path: Path) -> None:
    file = sb3_zip(tmp_path / "agent.zip", sb3_sac()[0])
    vecnormalize(tmp_path / "agent.vecnormalize.pkl", np.ones(3), np.ones(3), norm_obs=False)
    report = bring(tmp_path, file)
    assert report["normalizer"] == "none" and any("agent.vecnormalize.pkl" in note for note in report["notes"])


@pytest.mark.parametrize("distribution", ["tanh_gaussian", "gaussian"])
def test_the_policy_inside_a_d4rl_file_is_imported(tmp_path: Path, distribution: str) -> None:
    file, forward = d4rl_file(tmp_path / "data.hdf5", distribution)
    with h5py.File(file, "a") as opened:
        opened["metadata/policy/obs_mean"], opened["metadata/policy/obs_std"] = np.ones(3), np.full(3, 0.1)
        opened["metadata/policy/obs_clip"] = 5.0
    report = bring(tmp_path, file)
    with torch.no_grad():
        raw = forward(((STATES - 1) / 0.1).clamp(-5, 5))
    expected = torch.tanh(raw) if distribution == "tanh_gaussian" else (raw / 2).clamp(-1, 1)
    np.testing.assert_allclose(imported(tmp_path), expected, atol=1.2e-4)
    assert report["env_id"] == "Pendulum-v1" and report["parity"]["states"] == 50


def test_a_remaining_time_input_is_held_and_never_called_the_same_policy(tmp_path: Path) -> None:
    file, forward = d4rl_file(tmp_path / "data.hdf5", observations=OBSERVATIONS + 1)
    report = bring(tmp_path, file, "--time_feature", "0.5")
    with torch.no_grad():
        expected = torch.tanh(forward(torch.cat((STATES, torch.full((200, 1), 0.5)), -1)))
    np.testing.assert_allclose(imported(tmp_path), expected, atol=1.2e-4)
    assert report["verdict"].startswith("with its remaining-time input held") and any(
        "remaining time" in note for note in report["notes"]
    )


def corl(name: str) -> tuple[dict[str, Any], Callable[[Tensor], Tensor]]:
    """Checkpoints as CORL's `state_dict()` and the trainers' modules name their tensors."""
    if name == "td3_bc":
        net = perceptron([3, 8, 8, 1], nn.ReLU, nn.Tanh)
        return {"actor": prefixed("net", net.state_dict()), "critic_1": {}, "total_it": 7}, net
    if name == "iql":
        net = perceptron([3, 8, 8, 1], nn.ReLU, nn.Tanh)
        state = {"log_std": torch.full((1,), -0.3), **prefixed("net.net", net.state_dict())}
        return {"qf": {}, "actor": state, "total_it": 7}, net
    if name == "awac":
        net = perceptron([3, 8, 8, 8, 1], nn.ReLU)
        return {"actor": {"_log_std": torch.zeros(1), **prefixed("_mlp", net.state_dict())}}, lambda x: net(x).clamp(
            -1, 1
        )
    net = perceptron([3, 8, 8, 8, 2], nn.ReLU)
    scalars = {"log_std_multiplier.constant": torch.tensor(0.9), "log_std_offset.constant": torch.tensor(-1.1)}
    state = {**prefixed("base_network", net.state_dict()), **scalars}
    return {"actor": state, "sac_log_alpha": torch.zeros(1)}, lambda x: torch.tanh(net(x)[:, :1])


@pytest.mark.parametrize(
    ("name", "family"),
    [("td3_bc", "deterministic"), ("iql", "gaussian"), ("awac", "gaussian"), ("cql", "squashed_gaussian")],
)
def test_corls_checkpoints_are_known_by_their_names(tmp_path: Path, name: str, family: str) -> None:
    checkpoint, forward = corl(name)
    torch.save(checkpoint, tmp_path / "checkpoint.pt")
    report = bring(tmp_path, tmp_path / "checkpoint.pt")
    with torch.no_grad():
        np.testing.assert_allclose(imported(tmp_path), forward(STATES), atol=1.2e-4)
    assert (report["algorithm"], report["kind"]) == (name, family)
    if name == "cql":
        actor = read_handover(tmp_path / "run/import/checkpoints/last.ckpt").build_actor()
        assert float(actor.log_std_scale) == pytest.approx(0.9) and float(actor.log_std_offset) == pytest.approx(-1.1)


@pytest.mark.parametrize("family", ["deterministic", "gaussian", "squashed_gaussian"])
def test_a_plain_state_dict_is_read_layer_by_layer(tmp_path: Path, family: str) -> None:
    net = perceptron([3, 8, 1], nn.ReLU)
    state = dict(net.state_dict())
    if family == "gaussian":
        state["log_std"] = torch.zeros(1)
    if family == "squashed_gaussian":
        state |= prefixed("log_std_head", nn.Linear(8, 1).state_dict())
    torch.save(state, tmp_path / "plain.pth")
    report = bring(tmp_path, tmp_path / "plain.pth")
    assert report["kind"] == family and any("ReLU is assumed" in note for note in report["notes"])
    with torch.no_grad():
        np.testing.assert_allclose(imported(tmp_path), torch.tanh(net(STATES)), atol=1.2e-4)


def test_an_imported_policy_is_what_the_next_phases_start_from(tmp_path: Path) -> None:
    file, _ = d4rl_file(tmp_path / "data.hdf5")
    bring(tmp_path, file)
    start = tmp_path / "run/import/checkpoints/last.ckpt"
    options = ["--phase", "reevaluate", "online=o2sac", "--data.dataset", str(file), "--trainer.max_steps", "2"]
    small = ["--model.hidden", "[8]", "--data.batch_size", "8", "--data.eval_episodes", "1"]
    assert main(["fit", *options, *small, "--model.init_from", str(start), "--run_dir", str(tmp_path / "next")]) == 0
    after = read_handover(tmp_path / "next/reevaluate/checkpoints/last.ckpt")
    for key, value in read_handover(start).build_actor().state_dict().items():
        assert torch.equal(after.build_actor("offline_actor").state_dict()[key], value)


def test_its_score_is_that_of_its_own_actions_in_the_environment(tmp_path: Path) -> None:
    import gymnasium as gym

    state, forward = sb3_td3()
    file = sb3_zip(tmp_path / "agent.zip", state)
    options = ["--run_dir", str(tmp_path / "run"), "--env_id", "Pendulum-v1", "--episodes", "2", "--seed", "5"]
    assert main(["policy", "import", str(file), *options]) == 0
    report = json.loads((tmp_path / "run/import/summary.json").read_text())
    env, returns = gym.make("Pendulum-v1"), []
    for seed in (5, 6):
        observation, truncated, total = env.reset(seed=seed)[0], False, 0.0
        while not truncated:
            with torch.no_grad():
                action = 2 * forward(torch.from_numpy(observation)).numpy()
            observation, reward, _, truncated, _ = env.step(action)
            total += float(reward)
        returns.append(total)
    np.testing.assert_allclose(report["score"]["returns"], returns, rtol=1e-3)


def test_inspect_says_what_a_file_and_a_checkpoint_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = sb3_zip(tmp_path / "agent.zip", sb3_sac()[0])
    bring(tmp_path, file)
    capsys.readouterr()
    for target, format in ((file, "sb3"), (tmp_path / "run/import/checkpoints/last.ckpt", "o2o checkpoint")):
        assert main(["policy", "inspect", str(target), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["format"], found["kind"], found["hidden"]) == (format, "squashed_gaussian", [16, 8])
    assert found["action_dim"] == ACTIONS


def test_inspect_shows_layers_and_spaces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = sb3_zip(tmp_path / "agent.zip", sb3_ppo()[0])
    assert main(["policy", "inspect", str(file), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(layer["takes"], layer["gives"]) for layer in found["layers"][:3]] == [(3, 16), (16, 8), (8, 1)]
    assert found["layers"][3]["layer"] == "log σ" and "[-2.0] to [2.0]" in found["spaces"]
    assert main(["policy", "inspect", str(file)]) == 0
    assert "hidden" in capsys.readouterr().out


def test_list_shows_what_the_readers_declare(capsys: pytest.CaptureFixture[str]) -> None:
    from o2o_lightning.policies.read import FORMATS, READERS

    assert main(["policy", "list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["format"] for row in rows} == {*READERS} and {*FORMATS[1:4]} <= {*READERS}
    families = {(row["library"], row["policies"]): row["family"] for row in rows}
    assert families["CleanRL", "PPO (state dict)"] == "gaussian"
    assert families["Stable-Baselines3", "SAC, TQC (zip)"] == "squashed_gaussian"
    assert main(["policy", "list"]) == 0 and "Stable-Baselines3" in capsys.readouterr().out
