"""Exported policies, and policies that are only functions."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from data_files import env_of, raw_of
from policy_files import d4rl_file, perceptron, sb3_ppo, sb3_sac, sb3_td3, sb3_zip, vecnormalize
from torch import nn

from o2o_lightning.checkpoint.handover import read_handover
from o2o_lightning.cli.main import main
from o2o_lightning.data.mapped import load_store
from o2o_lightning.nn.actor import FloatArray
from o2o_lightning.policies import onnx_file
from o2o_lightning.policies.black_box import black_box, load_onnx

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
    graph = onnx_file.decode((checkpoint.parent / "policy.onnx").read_bytes())
    np.testing.assert_allclose(onnx_file.run(graph, STATES), native(checkpoint), atol=2e-6)


def test_onnx_runtime_runs_the_onnx_file(checkpoint: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    assert main(["policy", "export", str(checkpoint), "--format", "onnx"]) == 0
    session = onnxruntime.InferenceSession(checkpoint.parent / "policy.onnx", providers=["CPUExecutionProvider"])
    for rows in (1, 64):
        found = session.run(None, {"observation": STATES[:rows]})[0]
        np.testing.assert_allclose(found, native(checkpoint, STATES[:rows]), atol=2e-6)


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


def test_what_is_not_run_here_goes_to_one_session_of_onnx_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[bytes] = []

    class Session:
        def __init__(self, content: bytes, providers: list[str]) -> None:
            made.append(content)

        def get_inputs(self) -> list[Any]:
            return [SimpleNamespace(name="observation")]

        def run(self, outputs: None, inputs: dict[str, FloatArray]) -> list[FloatArray]:
            return [inputs["observation"] + 1]

    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace(InferenceSession=Session))
    node = onnx_file.Node("Softplus", ["observation"], ["y"], {})
    graph = onnx_file.Graph([node], {"w": np.ones(2, np.float32)}, ["observation"], ["y"], (3, 3))
    unknown = onnx_file.encode(graph, "policy")
    half = unknown.replace(b"\x10\x01\x42\x01w", b"\x10\x0a\x42\x01w")  # the constant's data type is float16
    assert half != unknown
    (tmp_path / "a.onnx").write_bytes(unknown)
    (tmp_path / "b.onnx").write_bytes(half)
    for name in ("a.onnx", "b.onnx"):
        run = load_onnx(str(tmp_path / name))
        for _ in range(3):
            np.testing.assert_array_equal(run(STATES), STATES + 1)
    assert len(made) == 2


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
