"""Cloning a policy into another family: Eq. 52, mean square, held-out episodes, and when a run clones by itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from data_files import record_pendulum
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution

from o2o_lightning.checkpoint.handover import read_handover
from o2o_lightning.cli.command import split
from o2o_lightning.cli.compose import compose, groups
from o2o_lightning.cli.main import main
from o2o_lightning.cli.models import method_of
from o2o_lightning.cli.phases import with_cloning
from o2o_lightning.data.cloning import held_out_rows
from o2o_lightning.nn.gaussian import GaussianActor
from o2o_lightning.nn.squashed_gaussian import SquashedGaussianActor
from o2o_lightning.objectives.imitation import cloning_loss, entropy_temperature_loss, imitation_loss

SMALL = ["--data.batch_size", "64", "--data.eval_episodes", "1", "--data.eval_every", "40", "steps.offline=20"]
STEPS = ["steps.clone=40", "steps.reevaluate=4", "steps.align=4", "steps.env=40", "--trainer.log_every_n_steps", "10"]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def pendulum(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1000 random steps of Pendulum-v1 in 50 episodes."""
    return record_pendulum(tmp_path_factory.mktemp("data") / "pendulum.hdf5", 50, 20)


def fit(run_dir: Path, *arguments: Any) -> dict[str, Any]:
    assert main(["fit", *map(str, arguments), "--run_dir", str(run_dir)]) == 0
    found: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
    return found


def checkpoint(run_dir: Path, phase: str) -> Path:
    return run_dir / phase / "checkpoints" / "last.ckpt"


# ---- the maths ---------------------------------------------------------------------------------------------------


def test_the_loss_is_minus_the_likelihood_and_the_weighted_entropy() -> None:
    log_prob, entropy = torch.tensor([1.0, -3.0]), torch.tensor([2.0, 4.0])
    assert float(cloning_loss(log_prob, entropy, torch.tensor(0.5))) == pytest.approx(-(-1.0 + 0.5 * 3.0))


def test_the_temperature_rises_below_the_target_entropy_and_falls_above_it() -> None:
    for entropy, direction in ((-5.0, -1.0), (0.0, 1.0)):
        log_temperature = torch.zeros((), requires_grad=True)
        entropy_temperature_loss(log_temperature, torch.full((3,), entropy), -3.0).backward()
        assert log_temperature.grad is not None and float(log_temperature.grad.sign()) == direction


def test_the_temperature_does_not_pull_at_the_policy() -> None:
    entropy = torch.zeros(3, requires_grad=True)
    assert not entropy_temperature_loss(torch.ones(()), entropy, -1.0).requires_grad


def test_a_deterministic_student_pays_the_mean_square_over_batch_and_dimensions() -> None:
    assert float(imitation_loss(torch.zeros(2, 2), torch.tensor([[1.0, 1.0], [0.0, 2.0]]))) == pytest.approx(1.5)


def test_the_squashed_density_is_that_of_torch_distributions() -> None:
    torch.manual_seed(0)
    actor = SquashedGaussianActor(3, 2, (8,)).double()
    observation, noise = torch.randn(5, 3).double(), torch.randn(5, 2).double()
    mean, log_std = actor.distribution(observation)
    reference = TransformedDistribution(Independent(Normal(mean, log_std.exp()), 1), [TanhTransform()])
    action = torch.tanh(mean + 0.3)
    log_prob, entropy, mode = actor.density(observation, action, noise)
    torch.testing.assert_close(mode, actor.mode(observation))
    torch.testing.assert_close(log_prob, reference.log_prob(action))
    sample = actor.sampled(observation, noise)
    torch.testing.assert_close(entropy, -reference.log_prob(sample))


@pytest.mark.parametrize("mean", ["tanh", "linear"])
def test_the_gaussian_density_is_that_of_torch_distributions(mean: str) -> None:
    torch.manual_seed(0)
    actor = GaussianActor(3, 2, (8,), mean=mean).double()
    observation, action = torch.randn(5, 3).double(), torch.rand(5, 2).double()
    center, log_std = actor(observation)
    reference = Independent(Normal(center, log_std.exp().expand_as(center)), 1)
    log_prob, entropy, mode = actor.density(observation, action, torch.zeros(5, 2))
    torch.testing.assert_close(mode, actor.mode(observation))
    torch.testing.assert_close(log_prob, reference.log_prob(action))
    torch.testing.assert_close(entropy, reference.entropy())


def test_a_linear_mean_acts_clipped_and_equally_in_numpy() -> None:
    torch.manual_seed(0)
    actor = GaussianActor(3, 2, (8,), activation="elu", mean="linear")
    with torch.no_grad():
        actor.body.linears[-1].bias.copy_(torch.tensor([3.0, -0.1]))  # type: ignore[union-attr]
    observation = torch.randn(6, 3)
    np.testing.assert_allclose(actor.act(observation.numpy()), actor.mode(observation).detach().numpy(), atol=1e-6)
    assert actor.mode(observation)[:, 0].max().item() == 1.0 and actor(observation)[0].max().item() > 1.0


# ---- held-out states ---------------------------------------------------------------------------------------------


def test_whole_episodes_are_held_out() -> None:
    episodes = torch.tensor([[0, 4], [4, 9], [9, 10], [10, 30]])
    rows = held_out_rows(episodes, 0.5).tolist()
    whole = [set(range(start, stop)) for start, stop in episodes.tolist()]
    chosen = [episode for episode in whole if episode & set(rows)]
    assert len(chosen) == 2 and set(rows) == chosen[0] | chosen[1] and rows == sorted(rows)
    assert rows == held_out_rows(episodes, 0.5).tolist()


def test_something_is_held_out_and_something_is_left_however_small_the_dataset() -> None:
    assert held_out_rows(torch.tensor([[0, 100]]), 0.1).tolist() == list(range(90, 100))
    assert held_out_rows(torch.tensor([[0, 2]]), 0.9).tolist() == [1]
    assert 0 < len(held_out_rows(torch.tensor([[0, 5], [5, 10]]), 0.99)) < 10


# ---- the phase ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def teachers(pendulum: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A policy of each family, hardly trained."""
    folder = tmp_path_factory.mktemp("teachers")
    common = ["--data.dataset", pendulum, "--model.hidden", "[16,16]", "--data.eval_every_updates", "0", *SMALL]
    for name in ("td3_bc", "cql", "iql"):
        fit(folder / name, "--phase", "offline", f"offline={name}", *common)
    kinds = {"deterministic": "td3_bc", "squashed_gaussian": "cql", "gaussian": "iql"}
    return {kind: checkpoint(folder / name, "offline") for kind, name in kinds.items()}


@pytest.mark.parametrize("family", ["deterministic", "squashed_gaussian", "gaussian"])
@pytest.mark.parametrize("teacher", ["deterministic", "squashed_gaussian", "gaussian"])
def test_every_family_becomes_every_other(
    tmp_path: Path, pendulum: Path, teachers: dict[str, Path], teacher: str, family: str
) -> None:
    options = ["--data.dataset", pendulum, "--model.family", family, "--model.hidden", "[16]", "--model.lr", "0.01"]
    found = fit(
        tmp_path, "--phase", "clone", "--model.init_from", teachers[teacher], *options, "steps.clone=150", *SMALL
    )
    source, clone = read_handover(teachers[teacher]), read_handover(checkpoint(tmp_path, "clone"))
    assert (clone.phase, clone.actor["kind"], clone.actor["hidden"]) == ("clone", family, [16])
    assert found["fidelity"]["teacher_family"] == teacher and found["fidelity"]["action_rmse"] < 0.1
    assert {"teacher", "student"} <= found["fidelity"].keys()
    for key, value in source.state.items():
        if key.startswith(("critic.", "target_critic.")):
            assert torch.equal(value, clone.state[key])
    assert all(torch.equal(clone.normalizer[key], source.normalizer[key]) for key in ("mean", "std"))
    # fidelity once more, from the two checkpoints alone
    with h5py.File(pendulum) as file:
        observations = torch.from_numpy(file["observations"][:])
    with torch.no_grad():
        apart = clone.build_actor().mode(clone.build_normalizer()(observations)) - source.build_actor().mode(
            source.build_normalizer()(observations)
        )
    assert float(apart.square().mean().sqrt()) == pytest.approx(found["fidelity"]["action_rmse"], rel=0.3)


def test_a_clone_without_progress_ends_early_and_keeps_its_best_weights(
    tmp_path: Path, pendulum: Path, teachers: dict[str, Path]
) -> None:
    options = [
        "--data.dataset",
        pendulum,
        "--model.family",
        "deterministic",
        "--model.check_every",
        "24",
    ]  # no multiple of the chunk
    stops = ["--model.patience", "2", "--model.progress", "1e9", "--model.lr", "0", "steps.clone=400"]
    found = fit(tmp_path, "--phase", "clone", "--model.init_from", teachers["gaussian"], *options, *stops, *SMALL)
    # the first check is a gain over nothing at all; the next two are not
    assert found["steps"] == 72
    clone = read_handover(checkpoint(tmp_path, "clone"))
    assert all(
        torch.equal(clone.state[f"actor.{k}"], v) for k, v in clone.build_actor("offline_actor").state_dict().items()
    )


# ---- when a run clones by itself ---------------------------------------------------------------------------------


@pytest.mark.parametrize("online", groups()["online"])
def test_the_family_in_the_configuration_is_the_one_that_the_phases_need(online: str) -> None:
    command = split([f"online={online}"])
    family = compose("clone", command)["model"]["init_args"]["family"]
    for phase in ("reevaluate", "align", "online"):
        model = compose(phase, command)["model"]
        if "class_path" in model:
            wanted = method_of(model).policy_family(model.get("init_args") or {})
            any_family = online in ("jsrl", "pa_rl", "pex")
            assert wanted == (None if any_family else family)


@pytest.mark.parametrize(
    ("online", "offline", "family"),
    [
        ("o2sac", "td3_bc", "squashed_gaussian"),
        ("o2td3", "cql", "deterministic"),
        ("o2ppo", "cql", "gaussian"),
        ("o2ppo", "td3_bc", "gaussian"),
    ],
)
def test_any_offline_policy_goes_online_with_any_algorithm(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], online: str, offline: str, family: str
) -> None:
    small = ["--model.hidden", "[16,16]", *SMALL, *STEPS, "steps.offline=4", "steps.clone=8"]
    total = fit(tmp_path, "--phase", "all", f"online={online}", f"offline={offline}", *small)
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("clone: the offline policy is")]
    assert len(said) == 1 and online.upper() in said[0]
    assert list(total["phases"])[:2] == ["offline", "clone"] and total["phase"] == "online"
    assert total["phases"]["clone"]["fidelity"]["family"] == family
    clone = read_handover(checkpoint(tmp_path, "clone"))
    fine_tuned = read_handover(checkpoint(tmp_path, "online"))
    for key, value in clone.build_actor().state_dict().items():  # π_off of the last phase is the clone
        assert torch.equal(value, fine_tuned.build_actor("offline_actor").state_dict()[key])


@pytest.mark.parametrize(
    ("tokens", "phases"),
    [
        ([], ["offline", "reevaluate", "align", "online"]),
        (["online=o2sac"], ["offline", "reevaluate", "align", "online"]),
        (["online=sac", "offline=td3_bc"], ["offline", "clone", "reevaluate", "align", "online"]),
        (["offline=iql"], ["offline", "clone", "reevaluate", "align", "online"]),
        (["offline=iql", "--model.deterministic", "true"], ["offline", "reevaluate", "align", "online"]),
    ],
)
def test_cloning_comes_in_where_the_family_changes_and_nowhere_else(tokens: list[str], phases: list[str]) -> None:
    without = [phase for phase in phases if phase != "clone"]
    assert with_cloning(split(tokens), without)[0] == phases


def test_direct_fine_tuning_of_a_clone_goes_on_with_the_offline_critic(
    tmp_path: Path, pendulum: Path, teachers: dict[str, Path]
) -> None:
    data = ["--data.dataset", pendulum, "--data.warmup_steps", "40"]
    fit(
        tmp_path,
        "--phase",
        "online",
        "online=sac",
        "--model.init_from",
        teachers["deterministic"],
        *data,
        *SMALL,
        *STEPS,
    )
    offline, clone = read_handover(teachers["deterministic"]), read_handover(checkpoint(tmp_path, "clone"))
    assert clone.critic == offline.critic and (tmp_path / "online" / "summary.json").exists()


def test_a_single_phase_clones_first_and_its_own_step_count_is_not_the_clones(
    tmp_path: Path, pendulum: Path, teachers: dict[str, Path]
) -> None:
    start = ["--model.init_from", teachers["deterministic"], "--data.dataset", pendulum, "--trainer.max_steps", "3"]
    total = fit(tmp_path, "--phase", "reevaluate", "online=o2sac", *start, *SMALL, "steps.clone=32")
    assert {name: found["steps"] for name, found in total["phases"].items()} == {"clone": 32, "reevaluate": 3}


def test_a_mismatch_that_only_a_file_reveals_is_one_line_that_says_how_to_clone(
    tmp_path: Path, pendulum: Path, teachers: dict[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"model: {{init_args: {{init_from: {teachers['gaussian']}}}}}\n")
    arguments = ["fit", "--phase", "reevaluate", "--config", str(file), "--data.dataset", str(pendulum)]
    assert main([*arguments, "--trainer.max_steps", "3", "--run_dir", str(tmp_path / "run")]) == 2
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("o2o: checkpoint") and "--phase clone" in error
