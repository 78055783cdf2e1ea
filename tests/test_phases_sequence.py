"""The Decision Transformers as offline sources: learning, evaluating, cloning; test_sources_battery.py has the rest."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
import pytest
import torch
from conftest import Fit, Run

from o2o_lightning.checkpoint.handover import read_handover
from o2o_lightning.cli.command import split
from o2o_lightning.cli.compose import compose, lightning_config
from o2o_lightning.cli.lightning import PhaseCLI
from o2o_lightning.cli.phases import with_cloning
from o2o_lightning.data.module import OfflineData
from o2o_lightning.data.trajectories import TrajectoryData
from o2o_lightning.errors import UserError
from o2o_lightning.methods.dt import DT
from o2o_lightning.methods.odt import ODT
from o2o_lightning.nn.decision_transformer import DecisionTransformer, SequencePolicy, Window
from o2o_lightning.phases.descent import Descent
from o2o_lightning.phases.offline import Offline
from o2o_lightning.policies.history import HistoryPlayer

KINDS = {"dt": "decision_transformer", "odt": "online_decision_transformer"}
TINY = {"width": 8, "layers": 1, "heads": 1, "context": 4, "acting_context": 3}
OPTIONS = [token for name, value in TINY.items() for token in (f"--model.{name}", str(value))]
SMALL = ["--data.batch_size", "16", "--data.eval_episodes", "1", "--trainer.log_every_n_steps", "5"]


def learnt(fit: Fit, pendulum: str, name: str, steps: int = 6, **options: Any) -> Run:
    method = {"dt": DT, "odt": ODT}[name]
    return fit(
        lambda: Offline(method(**TINY, **options)),
        lambda: TrajectoryData(dataset=pendulum, batch_size=16, eval_episodes=1),
        steps,
    )


@pytest.fixture(scope="module")
def policies(fit: Fit, pendulum: str) -> dict[str, Run]:
    """A policy of each family on Pendulum, hardly trained."""
    return {name: learnt(fit, pendulum, name) for name in KINDS}


def arguments(*tokens: Any) -> list[str]:
    return [str(token) for token in tokens]


# ---- the phase ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_a_checkpoint_holds_all_that_acting_needs(policies: dict[str, Run], pendulum: str, name: str) -> None:
    run = policies[name]
    source = read_handover(run.checkpoint)
    with h5py.File(pendulum) as file:
        observations, rewards = file["observations"][:], file["rewards"][:].reshape(60, 8)
    best = float(rewards.sum(1).max())
    expected = {"kind": KINDS[name], "observation_dim": 3, "action_dim": 1, "horizon": 200, **TINY}
    assert expected.items() <= source.actor.items()
    assert source.actor["target_return"] == pytest.approx(best, rel=1e-6)
    assert (source.phase, source.algorithm, source.critic, source.value) == ("offline", name, None, None)
    # constants over all observations, with the epsilon of this DataModule's options
    np.testing.assert_allclose(source.build_normalizer().mean.numpy(), observations.mean(0), atol=1e-6)
    policy, normalizer = source.build_policy(), source.build_normalizer()
    assert isinstance(policy, SequencePolicy)
    seen = Window(
        torch.zeros(2, 4), normalizer(torch.randn(2, 4, 3)), torch.zeros(2, 4, 1), torch.arange(4).expand(2, 4)
    )
    assert torch.equal(policy.eval().modes(seen), run.module.method.actor.eval().modes(seen))


@pytest.mark.parametrize("name", KINDS)
def test_every_weight_learns(policies: dict[str, Run], name: str) -> None:
    run = policies[name]
    still = [key for key, value in run.end().items() if torch.equal(value, run.start[key])]
    assert still == [] and run.module.updates == run.trainer.global_step == 6


def test_the_rate_rises_over_the_warm_up_and_the_temperature_has_its_own(fit: Fit, pendulum: str) -> None:
    run = learnt(fit, pendulum, "odt", steps=3, lr=0.1, warmup_updates=4, temperature_lr=0.02)
    rates = {group["name"]: group["lr"] for group in run.trainer.optimizers[0].param_groups}
    assert rates == {"actor": pytest.approx(0.1 * 3 / 4), "temperature": 0.02}
    decays = {group["name"]: group["weight_decay"] for group in run.trainer.optimizers[0].param_groups}
    assert decays == {"actor": 5e-4, "temperature": 0.0}


def test_gradients_are_clipped_to_the_policys_limit(fit: Fit, pendulum: str, monkeypatch: pytest.MonkeyPatch) -> None:
    norms, descend = [], Descent.__call__

    def watched(self: Descent, loss: torch.Tensor, counted: bool) -> None:
        descend(self, loss * 1e4, counted)
        parameters = self.phase.method.actor.parameters()
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norms.append(float(torch.stack([gradient.norm() for gradient in gradients]).norm()))

    monkeypatch.setattr(Descent, "__call__", watched)
    fit(lambda: Offline(DT(**TINY)), lambda: TrajectoryData(dataset=pendulum, batch_size=16, eval_episodes=1), 2)
    assert norms == [pytest.approx(0.25, rel=1e-3)] * 2


@pytest.mark.parametrize(
    ("data", "phrase"),
    [
        (lambda path: OfflineData(dataset=path), "it needs --data o2o_lightning.data.trajectories.TrajectoryData"),
        (lambda path: TrajectoryData(dataset=path, reward_shift=-1.0), "Pass --model.return_scale"),
    ],
)
def test_data_that_a_sequence_model_cannot_learn_from_is_refused(
    fit: Fit, pendulum: str, data: Callable[[str], OfflineData], phrase: str
) -> None:
    with pytest.raises(UserError, match=phrase):
        fit(lambda: Offline(DT(**TINY)), lambda: data(pendulum), 2)


def test_a_dataset_without_a_whole_episode_is_refused(fit: Fit, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "cut.hdf5", "w") as file:
        file["observations"], file["actions"] = np.zeros((5, 3), np.float32), np.zeros((5, 1), np.float32)
        file["rewards"], file["terminals"] = np.zeros(5, np.float32), np.zeros(5, np.bool_)
        file["timeouts"] = np.zeros(5, np.bool_)
    with pytest.raises(UserError, match="none of its episodes was recorded to its end"):
        fit(lambda: Offline(DT(**TINY)), lambda: TrajectoryData(dataset=str(tmp_path / "cut.hdf5"), batch_size=2), 1)


@pytest.mark.parametrize(
    ("options", "phrase"),
    [({"acting_context": 5}, "at most --model.context"), ({"heads": 3}, "a multiple of"), ({"layers": 0}, "layers 0")],
)
def test_sizes_that_do_not_fit_are_refused(options: dict[str, int], phrase: str) -> None:
    with pytest.raises(UserError, match=phrase):
        DT(**{**TINY, **options})


# ---- what is done with the policy --------------------------------------------------------------------------------


def test_an_evaluation_asks_for_the_target_less_the_rewards(policies: dict[str, Run]) -> None:
    """The whole evaluation once more: a plain loop around Gymnasium and the network."""
    run = policies["dt"]
    source = read_handover(run.checkpoint)
    policy, normalizer = source.build_policy(), source.build_normalizer()
    assert isinstance(policy, DecisionTransformer)
    env, history = gym.make("Pendulum-v1"), []
    observation, ended, total = env.reset(seed=1000)[0], False, 0.0
    while not ended:
        history.append([policy.spec.target_return - total, normalizer(torch.from_numpy(observation)), torch.zeros(1)])
        recent = history[-policy.spec.acting_context :]
        to_go = torch.tensor([[wanted for wanted, _, _ in recent]], dtype=torch.float32) * policy.spec.return_scale
        observations, actions = (torch.stack([step[i] for step in recent])[None] for i in (1, 2))
        steps = torch.arange(len(history))[None, -len(recent) :]
        with torch.no_grad():
            action = policy.eval().modes(Window(to_go, observations, actions, steps))[0, -1]
        history[-1][2] = action
        observation, reward, terminated, truncated, _ = env.step(2.0 * action.numpy())
        total, ended = total + float(reward), terminated or truncated
    assert run.module.curve[-1][1] == pytest.approx(total, rel=1e-3)
    assert run.module.eval_env_steps == len(history) == 200


@pytest.mark.parametrize(
    ("name", "online", "phases"),
    [("dt", "o2td3", ["offline", "reevaluate", "align", "online"]), ("odt", "o2sac", ["offline", "reevaluate"])],
)
def test_a_policy_with_a_memory_goes_online_as_a_clone_without(
    name: str, online: str, phases: list[str], o2o: Any, pendulum: str, tmp_path: Path
) -> None:
    steps = ["steps.offline=6", "steps.clone=20", "steps.reevaluate=3", "steps.align=3", "steps.env=30"]
    sizes = [*OPTIONS, *SMALL, "--model.hidden", "[8]"]
    if "online" in phases:
        sizes += ["--data.warmup_steps", "20", "--data.eval_every", "30"]
    method = [f"offline={name}", f"online={online}", f"phases=[{','.join(phases)}]"]
    assert o2o("fit", "--phase", "all", *method, *steps, *sizes, "--data.dataset", pendulum, "--run_dir", tmp_path) == 0
    total = json.loads((tmp_path / "summary.json").read_text())
    assert list(total["phases"]) == ["offline", "clone", *phases[1:]]
    fidelity, family = total["phases"]["clone"]["fidelity"], {"o2td3": "deterministic", "o2sac": "squashed_gaussian"}
    assert (fidelity["teacher_family"], fidelity["family"]) == (KINDS[name], family[online])
    # the teacher's score comes from the same start states as the offline phase's
    assert fidelity["teacher"] == pytest.approx(total["phases"]["offline"]["score"]["final"], rel=1e-4)
    assert {"student", "action_rmse"} <= fidelity.keys()


def test_t117_a_clone_is_as_far_from_the_modes_at_the_evaluations_target_as_it_says(
    o2o: Any, pendulum: str, tmp_path: Path
) -> None:
    line = ["fit", "--phase", "all", "offline=odt", "online=o2sac", "phases=[offline,reevaluate]", "steps.offline=6"]
    line += [
        "steps.clone=120",
        "steps.reevaluate=2",
        *OPTIONS,
        *SMALL,
        "--model.hidden",
        "[8]",
        "--clone.model.lr",
        "0.01",
    ]
    assert o2o(*line, "--data.dataset", pendulum, "--run_dir", tmp_path) == 0
    said = json.loads((tmp_path / "summary.json").read_text())["phases"]["clone"]["fidelity"]["action_rmse"]
    source, clone = (read_handover(tmp_path / phase / "checkpoints/last.ckpt") for phase in ("offline", "clone"))
    data = OfflineData(dataset=pendulum)
    data.setup("fit")
    assert data.store is not None
    teacher: Any = source.build_policy()
    with torch.no_grad():
        labels = HistoryPlayer(teacher, source.build_normalizer()).label(data.store, torch.device("cpu"))
        modes = clone.build_actor().mode(clone.build_normalizer()(data.store["observation"]))
    found = float((modes - labels).square().mean().sqrt())
    assert found == pytest.approx(said, rel=0.3) and found < 0.5 * float(labels.std() + labels.mean().abs())


def test_a_clone_is_put_before_the_first_phase_that_acts_without_memory() -> None:
    phases, note = with_cloning(split(["offline=dt", "online=o2sac"]), ["offline", "reevaluate", "align", "online"])
    assert phases == ["offline", "clone", "reevaluate", "align", "online"]
    assert note is not None and note.startswith("clone: the offline policy is a Decision Transformer, O2SAC needs")


def test_a_phase_that_needs_a_policy_without_memory_says_how_to_get_one(policies: dict[str, Run]) -> None:
    source = read_handover(policies["dt"].checkpoint)
    with pytest.raises(UserError, match=r"acts on the episode so far\. Clone it first: `o2o policy clone"):
        source.build_actor()


def test_onnx_is_refused_for_a_policy_with_a_memory(
    policies: dict[str, Run], o2o: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "policy.onnx"
    assert o2o("policy", "export", policies["dt"].checkpoint, "--format", "onnx", "--out", target) == 2
    assert "Pass --format torch" in capsys.readouterr().err and not target.exists()


def test_a_policy_with_a_memory_is_inspected_and_tested_like_any_other(
    policies: dict[str, Run], o2o: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = policies["dt"]
    assert o2o("policy", "inspect", run.checkpoint, "--json") == 0
    assert json.loads(capsys.readouterr().out).items() >= {"kind": "decision_transformer", "context": 4}.items()
    assert o2o("test", "--ckpt_path", run.checkpoint, "--data.eval_episodes", "1", "--run_dir", tmp_path) == 0
    found = json.loads((tmp_path / "test.json").read_text())
    assert found["return_mean"] == pytest.approx(run.module.curve[-1][1], rel=1e-4)


def test_predictions_on_a_dataset_are_a_clones_labels_in_the_environments_units(
    policies: dict[str, Run], chain: dict[str, Run], o2o: Any, pendulum: str, tmp_path: Path
) -> None:
    store = policies["dt"].trainer.datamodule.store  # type: ignore[attr-defined]
    for name, run in (("dt", policies["dt"]), ("td3_bc", chain["offline"])):
        assert o2o("predict", "--ckpt_path", run.checkpoint, "--run_dir", tmp_path / name) == 0
        source = read_handover(run.checkpoint)
        policy, normalizer = source.build_policy(), source.build_normalizer()
        if name == "dt":
            assert isinstance(policy, SequencePolicy)
            expected = HistoryPlayer(policy, normalizer).label(store, torch.device("cpu"))
        else:
            with torch.no_grad():
                expected = source.build_actor().mode(normalizer(store.leaves["observation"]))
        found = np.load(tmp_path / name / "actions.npz")["actions"]
        np.testing.assert_allclose(found, 2 * expected.numpy(), atol=2e-6)


# ---- configurations ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset", "dt", "odt"),
    [
        ("hopper-medium-v2", (4096, 8e-4, 0.001, 3600.0), (256, 1e-4, 0.001, 3600.0)),
        ("halfcheetah-medium-replay-v2", (4096, 8e-4, 0.001, 12000.0), (256, 1e-4, 0.001, 6000.0)),
        ("walker2d-medium-expert-v2", (4096, 8e-4, 0.001, 5000.0), (256, 1e-4, 0.001, 5000.0)),
        ("antmaze-medium-play-v2", (64, 1e-4, 1.0, 1.0), (256, 1e-4, 1.0, 1.0)),
        ("file", (4096, 8e-4, 0.001, None), (256, 1e-4, 0.001, None)),
    ],
)
def test_the_configurations_have_the_sources_numbers(dataset: str, dt: Any, odt: Any, tmp_path: Path) -> None:
    for name, expected, steps in (("dt", dt, 100_000), ("odt", odt, 5000)):
        config = lightning_config("offline", compose("offline", split([f"offline={name}", f"dataset={dataset}"])))
        file = ["--data.dataset", "a.hdf5"] if dataset == "file" else []
        built = PhaseCLI(config, file).build(tmp_path, "offline")
        method, data = built.model.method, built.datamodule
        assert isinstance(method, DT | ODT) and isinstance(data, TrajectoryData)
        assert (data.batch_size, method.lr, method.return_scale, method.target_return) == expected
        assert (built.trainer.max_steps, data.normalize_eps, method.grad_clip, method.warmup_updates) == (
            steps, 1e-6, 0.25, 10_000,
        )  # fmt: skip


def test_what_a_sequence_model_asks_of_the_data_ends_with_its_phase() -> None:
    for phase in ("clone", "reevaluate", "align", "online"):
        data = lightning_config(phase, compose(phase, split(["offline=dt", "dataset=hopper-medium-v2"])))["data"]
        assert data["init_args"].get("batch_size", 256) == 256 and "Trajectory" not in data["class_path"]
