"""What an import says was proved: the source's own actions or recordings agree, or nothing was compared with them."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import onnx
import pytest
import torch
from policy_files import Payload, box, d4rl_file, perceptron, sb3_ppo, sb3_sac, sb3_zip
from torch import nn

from o2o_lightning.cli.main import main
from o2o_lightning.envs.make import env_spec
from o2o_lightning.errors import UserError
from o2o_lightning.policies.black_box import black_box
from o2o_lightning.policies.npz import read_npz

STATES = torch.randn(300, 3, generator=torch.Generator().manual_seed(0))
PENDULUM = ["--env_id", "Pendulum-v1", "--episodes", "0"]  # whose actions are within ±2


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def agent(tmp_path: Path) -> Path:
    """A zip and, in its own units, reference.npz."""
    state, forward = sb3_sac()
    with torch.no_grad():
        np.savez(tmp_path / "reference.npz", observations=STATES.numpy(), actions=2 * forward(STATES).numpy())
    return sb3_zip(tmp_path / "agent.zip", state)


def bring(file: Path, *options: str) -> dict[str, Any]:
    out = file.parent / "a.ckpt"
    assert main(["policy", "import", str(file), "--out", str(out), "--episodes", "0", *options]) == 0
    found: dict[str, Any] = json.loads(out.with_suffix(".json").read_text())
    return found


def refused(capsys: pytest.CaptureFixture[str], file: Path, *options: str) -> str:
    out = file.parent / "b.ckpt"
    assert main(["policy", "import", str(file), "--out", str(out), "--episodes", "0", *options]) == 2
    assert not out.exists() and not out.with_suffix(".json").exists()
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("o2o: ")]
    assert len(lines) == 1
    return lines[0]


def test_the_line_names_the_reference_that_the_policy_was_proved_against(agent, tmp_path, capsys):
    report = bring(agent, *PENDULUM, "--reference", str(tmp_path / "reference.npz"))
    assert report["verdict"].startswith(f"same actions as {tmp_path / 'reference.npz'}, to ")
    assert "over 300 rows" in report["verdict"] and report["proof"]["largest"] < 2e-4
    assert report["verdict"] in capsys.readouterr().out


def test_without_a_reference_nothing_is_called_the_same(agent):
    report = bring(agent, *PENDULUM)
    assert "same" not in report["verdict"] and "not compared with the source's own actions" in report["verdict"]
    assert report["proof"] is None and report["parity"]["same"]


def test_other_actions_than_the_references_are_refused_and_nothing_is_written(agent, tmp_path, capsys):
    reference = dict(np.load(tmp_path / "reference.npz"))
    reference["actions"][7] += 1e-3
    np.savez(tmp_path / "other.npz", **reference)
    said = refused(capsys, agent, *PENDULUM, "--reference", str(tmp_path / "other.npz"))
    assert "not those of" in said and "dimension 0 of row 7" in said
    assert "not those of" in refused(
        capsys, agent, *PENDULUM, "--reference", str(tmp_path / "reference.npz"), "--activation", "tanh"
    )


def test_a_reference_in_the_unit_range_is_known_when_it_is_said(agent, tmp_path, capsys):
    reference = dict(np.load(tmp_path / "reference.npz"))
    np.savez(tmp_path / "unit.npz", observations=reference["observations"], actions=reference["actions"] / 2)
    options = [*PENDULUM, "--reference", str(tmp_path / "unit.npz")]
    assert "pass --actions unit" in refused(capsys, agent, *options)
    assert bring(agent, *options, "--actions", "unit")["proof"]["rows"] == 300


def test_a_reference_is_in_the_units_of_the_zip_and_not_of_another_environment(tmp_path):
    state, forward = sb3_ppo()
    file = sb3_zip(tmp_path / "agent.zip", state, action_space=box(bound=1.0))  # as under RescaleAction
    with torch.no_grad():
        np.savez(tmp_path / "r.npz", observations=STATES.numpy(), actions=forward(STATES).clamp(-1, 1).numpy())
    assert bring(file, *PENDULUM, "--reference", str(tmp_path / "r.npz"))["proof"]["rows"] == 300


def crafted(shape: str, held: bytes) -> bytes:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    member = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + held
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("observations.npy", member)
    return buffer.getvalue()


def test_what_is_no_reference_is_one_line_and_runs_nothing(agent, tmp_path, capsys):
    actions, file = np.zeros((4, 1), np.float32), tmp_path / "bad.npz"
    bad: dict[str, dict[str, Any]] = {
        "no 'actions'": {"observations": np.zeros((4, 3))},
        "(4, 2)": {"observations": np.zeros((4, 2)), "actions": actions},
        "(5, 3)": {"observations": np.zeros((5, 3)), "actions": actions},
        "NaN": {"observations": np.full((4, 3), np.nan), "actions": actions},
        "only numbers": {"observations": np.array([[Payload(tmp_path / "ran")]], object), "actions": actions},
    }
    for said, arrays in bad.items():
        np.savez(file, **arrays)
        assert said in refused(capsys, agent, *PENDULUM, "--reference", str(file))
    for content in (b"PK", b"no zip", crafted("(1,", b"")):
        file.write_bytes(content)
        assert "no NPZ file" in refused(capsys, agent, *PENDULUM, "--reference", str(file))
    assert "is not there" in refused(capsys, agent, *PENDULUM, "--reference", str(tmp_path / "none.npz"))
    assert not (tmp_path / "ran").exists()


def test_an_array_is_as_large_as_its_bytes_whatever_it_declares():
    assert read_npz(crafted("(2,)", bytes(8)))["observations"].tolist() == [0.0, 0.0]
    for shape in ("(1000000000000,)", "(3,)", "(-2,)"):
        with pytest.raises(UserError, match="declares"):
            read_npz(crafted(shape, bytes(8)))


@pytest.mark.parametrize("distribution", ["tanh_gaussian", "gaussian"])
def test_recorded_log_probabilities_prove_mean_and_deviation(distribution, tmp_path):
    file, forward = d4rl_file(tmp_path / "data.hdf5", distribution)
    states, sigma = STATES, float(np.exp(-1.0))
    with torch.no_grad():
        drawn = torch.distributions.Normal(forward(states), sigma)
        raw = drawn.sample()
    log_prob, actions = drawn.log_prob(raw)[:, 0], raw
    if distribution == "tanh_gaussian":  # of [-1, 1], as SAC records it
        actions = torch.tanh(raw)
        log_prob = log_prob - torch.log1p(-(actions.double() ** 2))[:, 0]
        actions = 2 * actions
    with h5py.File(file, "a") as opened:
        for name in ("observations", "actions", "rewards", "terminals", "timeouts"):
            del opened[name]
        opened["observations"], opened["actions"] = states.numpy(), actions.clamp(-2, 2).numpy()
        opened["rewards"], opened["terminals"] = np.zeros(300, np.float32), np.zeros(300, np.bool_)
        opened["timeouts"] = np.arange(300) % 10 == 9
        opened["infos/action_log_probs"] = log_prob.float().numpy()
    options = ("--data.env_id", "Pendulum-v1")
    assert bring(file, *options)["verdict"].startswith(f"same recorded log-probabilities as {file}, to ")
    (tmp_path / "a.ckpt").unlink(), (tmp_path / "a.json").unlink()
    assert bring(file, *options, "--activation", "tanh")["proof"] is None


# ---- black boxes: in which units -----------------------------------------------------------------------------------


def constant_onnx(path: Path, value: float) -> Path:
    taken, given = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", width])
        for name, width in (("observation", 3), ("action", 1))
    )
    weight = onnx.numpy_helper.from_array(np.zeros((3, 1), np.float32), "w")
    bias = onnx.numpy_helper.from_array(np.full(1, value, np.float32), "b")
    node = onnx.helper.make_node("Gemm", ["observation", "w", "b"], ["action"])
    graph = onnx.helper.make_graph([node], "policy", [taken], [given], [weight, bias])
    opset = [onnx.helper.make_opsetid("", 13)]
    path.write_bytes(onnx.helper.make_model(graph, ir_version=8, opset_imports=opset).SerializeToString())
    return path


@pytest.mark.parametrize(("value", "units", "expected"), [
    (1.5, "auto", 0.75), (0.5, "auto", 0.25), (1.0, "unit", 1.0), (1.0, "native", 0.5), (0.5, "unit", 0.5),
])  # fmt: skip
def test_a_black_boxs_actions_are_in_the_units_that_are_said(value, units, expected, tmp_path):
    file, states = constant_onnx(tmp_path / "a.onnx", value), STATES.numpy()
    teacher = black_box(str(file), "onnx", (3, 1), env_spec("Pendulum-v1", 3), units, states)
    np.testing.assert_allclose(teacher.act(states), np.full((300, 1), expected))


def test_a_black_box_that_ends_at_the_edge_of_the_unit_range_is_asked_about(tmp_path):
    file, env = constant_onnx(tmp_path / "a.onnx", 1.0), env_spec("Pendulum-v1", 3)
    with pytest.raises(UserError, match=r"normalised actions\? Pass --actions unit"):
        black_box(str(file), "onnx", (3, 1), env, "auto", STATES.numpy())


def test_the_units_of_a_black_box_reach_the_clone(tmp_path, capsys):
    net, data = perceptron([3, 8, 1], nn.ReLU, nn.Tanh), d4rl_file(tmp_path / "data.hdf5")[0]
    net[2].weight.data.mul_(100)  # at the edge
    torch.jit.save(torch.jit.trace(net, torch.zeros(2, 3)), tmp_path / "a.pt")
    options = ["--format", "torchscript", "--family", "deterministic", "--dataset", str(data), "steps.clone=2",
               "--data.eval_episodes", "1", "--run_dir"]  # fmt: skip
    assert main(["policy", "import", str(tmp_path / "a.pt"), *options, str(tmp_path / "a")]) == 2
    assert "Pass --actions unit" in capsys.readouterr().err
    assert main(["policy", "import", str(tmp_path / "a.pt"), *options, str(tmp_path / "b"), "--actions", "unit"]) == 0
    assert "teacher_actions: unit" in (tmp_path / "b/clone/config.yaml").read_text()
