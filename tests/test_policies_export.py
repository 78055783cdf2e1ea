"""Exported policies, and policies that are only functions."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from data_files import env_of, raw_of
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from policy_files import d4rl_file, perceptron, sb3_ppo, sb3_sac, sb3_td3, sb3_zip, vecnormalize
from torch import nn

from o2o_lightning.checkpoint.handover import read_handover
from o2o_lightning.cli.main import main
from o2o_lightning.data.mapped import load_store
from o2o_lightning.errors import UserError
from o2o_lightning.nn.actor import DeterministicActor, FloatArray
from o2o_lightning.nn.mlp import ACTIVATIONS
from o2o_lightning.nn.normalizer import Normalizer
from o2o_lightning.policies.black_box import black_box
from o2o_lightning.policies.export import DeployedActor, export
from o2o_lightning.policies.onnx_file import write_onnx

STATES = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)


@pytest.fixture(params=["sac", "td3", "ppo"])
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An imported policy of Pendulum, with clipped normalisation."""
    torch.manual_seed(0)
    state, _ = {"sac": sb3_sac, "td3": sb3_td3, "ppo": sb3_ppo}[request.param]()
    vecnormalize(tmp_path / "agent.vecnormalize.pkl", np.array([0.1, -0.2, 0.3]), np.array([0.5, 1.0, 0.01]))
    file, target = sb3_zip(tmp_path / "agent.zip", state), tmp_path / "policy.ckpt"
    arguments = ["policy", "import", str(file), "--env_id", "Pendulum-v1", "--out", str(target), "--episodes", "0"]
    assert main(arguments) == 0
    return target


def native(checkpoint: Path, states: FloatArray = STATES) -> FloatArray:
    """The checkpoint's actions in Pendulum's units of ±2."""
    source = read_handover(checkpoint)
    with torch.no_grad():
        mode = source.build_actor().mode(source.build_normalizer()(torch.from_numpy(states)))
    return 2 * mode.numpy()


def test_an_exported_program_acts_as_the_checkpoint_in_the_environments_units(checkpoint: Path) -> None:
    assert main(["policy", "export", str(checkpoint), "--format", "torch"]) == 0
    program = torch.export.load(checkpoint.parent / "policy.pt2").module()
    for rows in (1, 64):  # any batch size
        with torch.no_grad():
            found = program(torch.from_numpy(STATES[:rows])).numpy()
        np.testing.assert_allclose(found, native(checkpoint, STATES[:rows]), atol=2e-6)


def test_an_onnx_file_acts_as_the_checkpoint_in_the_environments_units(checkpoint: Path) -> None:
    assert main(["policy", "export", str(checkpoint), "--format", "onnx"]) == 0
    model = onnx.load(checkpoint.parent / "policy.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert (model.ir_version, [entry.version for entry in model.opset_import]) == (8, [13])
    for rows in (1, 64):  # any batch size
        found = ReferenceEvaluator(model).run(None, {"observation": STATES[:rows]})[0]
        np.testing.assert_allclose(found, native(checkpoint, STATES[:rows]), atol=2e-6)


def test_onnx_runtime_runs_the_onnx_file(checkpoint: Path) -> None:
    assert main(["policy", "export", str(checkpoint), "--format", "onnx"]) == 0
    session = onnxruntime.InferenceSession(checkpoint.parent / "policy.onnx", providers=["CPUExecutionProvider"])
    for rows in (1, 64):
        found = session.run(None, {"observation": STATES[:rows]})[0]
        np.testing.assert_allclose(found, native(checkpoint, STATES[:rows]), atol=2e-6)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_goes_out_to_onnx(tmp_path: Path, activation: str) -> None:
    torch.manual_seed(0)
    actor = DeterministicActor(3, 1, (8, 8), activation)
    policy = DeployedActor(actor, Normalizer.identity(3), -np.ones(1, np.float32), np.ones(1, np.float32))
    assert export(policy, tmp_path / "a.onnx", "onnx") < 1e-6


def test_without_its_packages_onnx_is_one_line(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "o2o_lightning.policies.onnx_file")
    monkeypatch.delattr("o2o_lightning.policies.onnx_file")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match="pip install"):
        black_box("a.onnx", "onnx", (3, 1), None)
    assert main(["policy", "export", str(checkpoint), "--format", "onnx"]) == 2
    assert "pip install 'o2o-lightning[onnx]'" in capsys.readouterr().err
    assert main(["policy", "export", str(checkpoint), "--format", "torch"]) == 0


@pytest.fixture
def rough(tmp_path: Path) -> Path:
    """A checkpoint whose output is what two sums of about 1,000 leave: float32 rounds it to 1e-5."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 400), nn.ReLU(), nn.Linear(400, 300), nn.ReLU(), nn.Linear(300, 1))
    with torch.no_grad():
        net[0].weight.mul_(100)
        net[4].weight.abs_()
        net[4].bias.copy_(-net(torch.from_numpy(STATES)).mean() + net[4].bias)
    state = {f"actor.mu.{name}": value.detach() for name, value in net.state_dict().items()}
    file, target = sb3_zip(tmp_path / "rough.zip", state), tmp_path / "rough.ckpt"
    assert main(["policy", "import", str(file), "--out", str(target), "--episodes", "0"]) == 0
    return target


@pytest.mark.parametrize("format", ["torch", "onnx"])
def test_a_policy_that_float32_rounds_by_more_than_others_is_exported(
    rough: Path, format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = read_handover(rough)
    actor, states = source.build_actor(), torch.from_numpy(STATES)
    exact = actor.double().mode(states.double()).detach().numpy()
    assert np.abs(source.build_actor().act(STATES) - exact).max() > 2e-6  # float32's own distance
    assert main(["policy", "export", str(rough), "--format", format]) == 0
    assert (rough.parent / ("policy.pt2" if format == "torch" else "policy.onnx")).exists()


def test_a_file_with_another_weight_than_the_checkpoints_is_removed_again(
    rough: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def another(*policy: Any) -> onnx.ModelProto:
        model = write_onnx(*policy)
        bias = next(tensor for tensor in model.graph.initializer if tensor.name == "bias2")
        bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(0.01), "bias2"))
        return model

    monkeypatch.setattr("o2o_lightning.policies.onnx_file.write_onnx", another)
    assert main(["policy", "export", str(rough), "--format", "onnx"]) == 2
    assert "so it was removed again" in capsys.readouterr().err and not (rough.parent / "policy.onnx").exists()


def test_an_export_is_not_written_over_another_file(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = checkpoint.parent / "mine.onnx"
    target.write_text("mine")
    assert main(["policy", "export", str(checkpoint), "--format", "onnx", "--out", str(target)]) == 2
    assert target.read_text() == "mine" and "nothing is written over" in capsys.readouterr().err


# ---- black boxes -------------------------------------------------------------------------------------------------

MODULE = """
import numpy as np

def act(observation):
    return 2.0 * np.tanh(observation[:, :1] - 0.5 * observation[:, 2:])

def wide(observation):
    return np.zeros((len(observation), 7))

def in_place(observation):
    observation -= 5
    return np.tanh(observation[:, :1])

def broken(observation):
    raise RuntimeError("no")
"""
SMALL = ["steps.clone=400", "--model.hidden", "[32]", "--model.lr", "0.01", "--data.eval_episodes", "1"]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "controller_of_a_test.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("controller_of_a_test", None)
    return "controller_of_a_test"


def expected(states: FloatArray) -> FloatArray:
    """The module's function in [−1, 1]."""
    return np.tanh(states[:, :1] - 0.5 * states[:, 2:])


@pytest.mark.parametrize("command", ["import", "clone"])
def test_a_python_function_is_distilled(tmp_path: Path, module: str, command: str) -> None:
    data = d4rl_file(tmp_path / "data.hdf5")[0]
    options = ["--family", "deterministic", "--dataset", str(data), "--run_dir", str(tmp_path / "run"), *SMALL]
    assert main(["policy", command, f"{module}:act", *options]) == 0
    clone = read_handover(tmp_path / "run/clone/checkpoints/last.ckpt")
    import h5py

    with h5py.File(data) as file:
        states = file["observations"][:]
    found = clone.build_actor().act(clone.build_normalizer().numpy(states))
    assert float(np.sqrt(np.square(found - expected(states)).mean())) < 0.1
    summary = json.loads((tmp_path / "run/clone/summary.json").read_text())
    assert summary["fidelity"]["teacher_family"] is None and summary["fidelity"]["action_rmse"] < 0.3


def test_an_onnx_file_is_distilled_like_any_function(tmp_path: Path, checkpoint: Path) -> None:
    assert main(["policy", "export", str(checkpoint), "--format", "onnx"]) == 0
    data = d4rl_file(tmp_path / "data.hdf5")[0]
    options = ["--family", "deterministic", "--dataset", str(data), "--run_dir", str(tmp_path / "run"), *SMALL]
    assert main(["policy", "import", str(checkpoint.parent / "policy.onnx"), *options]) == 0
    assert read_handover(tmp_path / "run/clone/checkpoints/last.ckpt").actor["kind"] == "deterministic"


def test_torchscript_and_torch_export_are_distilled_when_named(tmp_path: Path) -> None:
    net = perceptron([3, 8, 1], nn.ReLU, nn.Tanh)
    torch.jit.save(torch.jit.trace(net, torch.zeros(2, 3)), tmp_path / "a.pt")
    dynamic = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(net, (torch.zeros(2, 3),), dynamic_shapes=dynamic), tmp_path / "b.pt2")
    data = d4rl_file(tmp_path / "data.hdf5")[0]
    for name, format in (("a.pt", "torchscript"), ("b.pt2", "torch_export")):
        run = ["--run_dir", str(tmp_path / format), "--family", "gaussian", "--dataset", str(data), *SMALL]
        assert main(["policy", "clone", str(tmp_path / name), "--format", format, *run, "steps.clone=5"]) == 0


def test_a_function_that_writes_into_its_input_does_not_change_the_dataset(module: str) -> None:
    teacher = black_box(f"{module}:in_place", "callable", (3, 1), None)
    store = load_store(raw_of(np.zeros(12, np.bool_), np.arange(12) == 11), env_of(actions=2))
    before = store.leaves["observation"].clone()
    labels = teacher.label(store, torch.device("cpu"))
    assert torch.equal(store.leaves["observation"], before)
    torch.testing.assert_close(labels, torch.tanh(before[:, :1] - 5))


@pytest.mark.parametrize("command", ["import", "clone"])
def test_the_evaluation_of_a_clone_is_chosen_as_that_of_an_import(
    command: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr("o2o_lightning.cli.fit.main", lambda argv: seen.append(argv) or 0)
    options = ["--data.eval_episodes", "3", "--data.eval_seed", "7", "--family", "deterministic"]
    assert main(["policy", command, f"{module}:act", *options]) == 0
    pairs = dict(zip(seen[0], seen[0][1:], strict=False))
    assert (pairs["--data.eval_episodes"], pairs["--data.eval_seed"]) == ("3", "7")


@pytest.mark.parametrize(("function", "said"), [("wide", "shape"), ("broken", "no"), ("absent", "absent")])
def test_a_function_that_does_not_fit_is_one_line(
    tmp_path: Path, module: str, capsys: pytest.CaptureFixture[str], function: str, said: str
) -> None:
    data = d4rl_file(tmp_path / "data.hdf5")[0]
    options = ["--family", "deterministic", "--dataset", str(data), "--run_dir", str(tmp_path / "run"), *SMALL]
    assert main(["policy", "import", f"{module}:{function}", *options]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("o2o: policy") and said in error
