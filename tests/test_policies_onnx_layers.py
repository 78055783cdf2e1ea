"""ONNX graphs that are perceptrons: ours and others' come in by their layers, as ONNX Runtime runs them."""

from __future__ import annotations

import contextlib
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from policy_files import sb3_ppo, sb3_sac, sb3_td3, sb3_zip, vecnormalize

from o2o_lightning.checkpoint.handover import Handover, read_handover
from o2o_lightning.cli.main import main
from o2o_lightning.errors import UserError
from o2o_lightning.nn.actor import Actor, FloatArray
from o2o_lightning.nn.actors import ACTORS
from o2o_lightning.nn.mlp import ACTIVATIONS
from o2o_lightning.nn.normalizer import Normalizer
from o2o_lightning.policies.export import DeployedActor, export
from o2o_lightning.policies.onnx_layers import NotLayersError
from o2o_lightning.policies.read import read_policy
from o2o_lightning.policies.source import ImportedPolicy

DRAW = np.random.default_rng(0)
STATES = DRAW.normal(size=(64, 3)).astype(np.float32)
LOW, HIGH = np.array([-2.0, 0.0], np.float32), np.array([2.0, 0.5], np.float32)


def run(file: Path, states: FloatArray = STATES) -> FloatArray:
    """What ONNX Runtime gives."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: states})[0]


def exported(folder: Path, kind: str, activation: str = "relu", mean: str = "tanh") -> tuple[Actor, Path]:
    """An actor with clipped normalisation and lopsided bounds, and its ONNX file."""
    torch.manual_seed(0)
    actor = ACTORS[kind](3, 2, (8, 6), activation, mean)
    for parameter in actor.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    normalizer = Normalizer(torch.tensor([0.1, -0.2, 0.3]), torch.tensor([0.5, 1.0, 0.25]), 1e-3, 1.5)
    export(DeployedActor(actor, normalizer, LOW, HIGH), folder / "a.onnx", "onnx")
    return actor, folder / "a.onnx"


def acts(policy: ImportedPolicy, states: FloatArray = STATES) -> FloatArray:
    """By our own network."""
    return policy.build_actor().act(policy.build_normalizer().numpy(states))


def unit(actions: FloatArray) -> FloatArray:
    return (actions - LOW) / (HIGH - LOW) * 2 - 1


@pytest.mark.parametrize(
    ("kind", "mean"),
    [("deterministic", "tanh"), ("squashed_gaussian", "tanh"), ("gaussian", "tanh"), ("gaussian", "linear")],
)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_export_comes_back_with_its_family_its_actions_and_its_density(
    tmp_path: Path, kind: str, mean: str, activation: str
) -> None:
    actor, file = exported(tmp_path, kind, activation, mean)
    policy = read_policy(str(file), "onnx")
    back = policy.build_actor()
    assert back.spec == actor.spec
    np.testing.assert_allclose(acts(policy), unit(run(file)), atol=1e-6)
    for name, tensor in actor.state_dict().items():
        torch.testing.assert_close(back.state_dict()[name], tensor, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("make", [sb3_sac, sb3_td3, sb3_ppo])
def test_a_policy_that_went_out_and_back_is_the_one_that_went(tmp_path: Path, make: Any) -> None:
    torch.manual_seed(0)
    vecnormalize(tmp_path / "agent.vecnormalize.pkl", np.array([0.1, -0.2, 0.3]), np.array([0.5, 1.0, 0.01]))
    file = sb3_zip(tmp_path / "agent.zip", make()[0])
    there = bring(file, tmp_path / "there.ckpt", "--env_id", "Pendulum-v1")
    assert main(["policy", "export", str(tmp_path / "there.ckpt"), "--format", "onnx"]) == 0
    back = bring(tmp_path / "policy.onnx", tmp_path / "back.ckpt")  # family and environment are the file's
    assert (back.actor, back.env_id) == (there.actor, "Pendulum-v1")
    np.testing.assert_allclose(mode(back), mode(there), atol=1e-6)
    said = json.loads((tmp_path / "back.json").read_text())
    assert said["verdict"].startswith("same actions as ONNX Runtime's of") and said["proof"]["rows"] == 1000


def bring(file: Path, target: Path, *options: str) -> Handover:
    assert main(["policy", "import", str(file), "--out", str(target), "--episodes", "0", *options]) == 0
    return read_handover(target)


def mode(source: Handover) -> FloatArray:
    with torch.no_grad():
        return source.build_actor().mode(source.build_normalizer()(torch.from_numpy(STATES))).numpy()


# ---- graphs of others --------------------------------------------------------------------------------------------

Step = tuple[str, Any]


def weights(*shape: int) -> FloatArray:
    return DRAW.normal(scale=0.5, size=shape).astype(np.float32)


def graph(path: Path, *steps: Any, outputs: dict[str, list[Any]] | None = None, opset: int = 17) -> Path:
    """Operators with constants and attributes, one after the other; ``outputs``: more of them, from the same start."""
    nodes, constants = [], []
    for output, chain in {"action": [*steps], **(outputs or {})}.items():
        at = "o"
        for i, (op, *others) in enumerate(chain):
            told = others.pop() if others and isinstance(others[-1], dict) else {}
            names = [f"{output}{i}_{j}" for j in range(len(others))]
            constants += [
                numpy_helper.from_array(np.asarray(part), name) for part, name in zip(others, names, strict=True)
            ]
            to = output if i == len(chain) - 1 else f"{output}{i}"
            nodes.append(helper.make_node(op, [at, *names], [to], **told))
            at = to
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, None]) for name in ("action", *(outputs or ()))
    ]
    taken = [helper.make_tensor_value_info("o", TensorProto.FLOAT, ["n", 3])]
    made = helper.make_graph(nodes, "g", taken, ends, constants)
    onnx.save(helper.make_model(made, ir_version=8, opset_imports=[helper.make_opsetid("", opset)]), path)
    return path


FIRST: list[Any] = [("Gemm", weights(8, 3), weights(8), {"transB": 1}), ("Relu",)]
LAST: list[Any] = [("MatMul", weights(8, 2)), ("Add", weights(2))]
F = np.float32


def test_a_scaled_tanh_is_deterministic_with_its_range(tmp_path: Path) -> None:
    """As CleanRL's, with a flat observation, a product and a sum for a layer, and the scale behind the tanh."""
    tail = [("Tanh",), ("Mul", np.array([2.0, 0.25], F)), ("Add", np.array([0.0, 0.25], F))]
    file = graph(tmp_path / "a.onnx", ("Flatten", {"axis": 1}), *FIRST, *LAST, *tail)
    policy = read_policy(str(file), "onnx")
    again = graph(tmp_path / "b.onnx", *FIRST, *LAST, ("Tanh",), ("Mul", F(0.3)), ("Clip", F(-0.3), F(0.3)))
    assert read_policy(str(again), "onnx").family == "deterministic"  # a clip that clips nothing
    assert policy.family == "deterministic" and policy.reach is not None
    np.testing.assert_allclose(policy.reach, (LOW, HIGH))
    np.testing.assert_allclose(acts(policy), unit(run(file)), atol=1e-6)


def test_a_mean_without_a_tanh_is_a_gaussian_where_that_is_said(tmp_path: Path) -> None:
    file = graph(tmp_path / "a.onnx", *FIRST, *LAST, ("Clip", F(-1), F(1)))
    with pytest.raises(NotLayersError, match="any family"):
        read_policy(str(file), "onnx")
    policy = read_policy(str(file), "onnx", family="gaussian")
    assert policy.mean_kind == "linear" and "no σ" in policy.notes["spread"]
    np.testing.assert_allclose(np.exp(policy.log_std), [0.1, 0.1])
    np.testing.assert_allclose(acts(policy), run(file), atol=1e-6)


def test_the_actions_of_a_bare_mean_are_the_environments(tmp_path: Path) -> None:
    file = graph(tmp_path / "a.onnx", *FIRST, ("Gemm", weights(8, 1)))
    back = bring(file, tmp_path / "a.ckpt", "--env_id", "Pendulum-v1", "--family", "gaussian")
    np.testing.assert_allclose(mode(back), np.clip(run(file) / 2, -1, 1), atol=1e-6)
    with pytest.raises(NotLayersError):
        read_policy(str(file), "onnx", family="squashed_gaussian")


def test_a_squashed_gaussian_without_its_deviation_has_a_constant_one(tmp_path: Path) -> None:
    file = graph(tmp_path / "a.onnx", *FIRST, *LAST, ("Tanh",))
    actor = read_policy(str(file), "onnx", family="squashed_gaussian").build_actor()
    torch.testing.assert_close(actor(torch.from_numpy(STATES)).log_std.exp(), torch.full((64, 2), 0.1))


def test_statistics_that_the_graph_has_not_come_from_their_own_file(tmp_path: Path) -> None:
    file = graph(tmp_path / "a.onnx", *FIRST, ("Gemm", weights(8, 1)), ("Tanh",))
    (tmp_path / "s.json").write_text('{"mean": [1, 2, 3], "std": [1, 2, 0.5], "clip": 2}')
    back = bring(file, tmp_path / "a.ckpt", "--normalizer", str(tmp_path / "s.json"))
    inner = np.clip((STATES - np.array([1, 2, 3], F)) / np.array([1, 2, 0.5], F), -2, 2)
    np.testing.assert_allclose(mode(back), run(file, inner), atol=1e-6)
    normal = graph(tmp_path / "b.onnx", ("Sub", F(1)), ("Mul", F(0.5)), *FIRST, ("Gemm", weights(8, 1)), ("Tanh",))
    assert acts(read_policy(str(normal), "onnx")) == pytest.approx(run(normal), abs=1e-6)
    with pytest.raises(UserError, match="itself"):
        read_policy(str(normal), "onnx", normalizer=str(tmp_path / "s.json"))


def test_of_several_outputs_the_wider_or_the_named_is_the_action(tmp_path: Path) -> None:
    value = [*FIRST, ("Gemm", weights(8, 1))]
    for name in ("baseline", "42"):
        file = graph(tmp_path / f"{name}.onnx", *FIRST, *LAST, ("Tanh",), outputs={name: value})
        assert read_policy(str(file), "onnx").action_dim == 2
    squared = graph(tmp_path / "b.onnx", *FIRST, *LAST, ("Softsign",), outputs={"42": value})
    with pytest.raises(NotLayersError):  # its value is a perceptron, its action is none
        read_policy(str(squared), "onnx", family="gaussian")


@pytest.mark.parametrize(
    "steps",
    [
        [("Softplus",), *FIRST, *LAST, ("Tanh",)],
        [*FIRST, ("LayerNormalization", weights(8), weights(8)), *LAST, ("Tanh",)],
        [*FIRST, ("Gemm", weights(8, 8)), ("Elu",), *LAST, ("Tanh",)],
        [("Gemm", weights(3, 8)), ("Elu", {"alpha": 0.5}), *LAST, ("Tanh",)],
        [*FIRST, *LAST, ("Tanh",), ("Clip", F(-0.5), F(0.5))],
        [*FIRST, *LAST, ("Tanh",), ("Mul", F(-1))],
        [*FIRST, *LAST, ("Softsign",)],
        [("Clip", F(-1), F(2)), *FIRST, *LAST, ("Tanh",)],
        [("Reshape", np.array([-1, 1, 3])), ("ReduceMax", {"axes": [1], "keepdims": 0}), *FIRST, *LAST, ("Tanh",)],
    ],
)
def test_another_graph_is_not_taken_for_a_perceptron(tmp_path: Path, steps: list[Any]) -> None:
    with pytest.raises(NotLayersError):
        read_policy(str(graph(tmp_path / "a.onnx", *steps)), "onnx")


def test_what_onnx_runtime_does_otherwise_is_not_taken(tmp_path: Path) -> None:
    """GELU by its tanh has the same operator, and is told by its actions alone."""
    for approximate, taken in (("none", True), ("tanh", False)):
        file = graph(tmp_path / "a.onnx", FIRST[0], ("Gelu", {"approximate": approximate}), *LAST, ("Tanh",), opset=20)
        with contextlib.nullcontext() if taken else pytest.raises(NotLayersError, match="its actions are not those of"):
            np.testing.assert_allclose(acts(read_policy(str(file), "onnx")), run(file), atol=1e-6)


def test_what_torch_writes_is_read(tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.SiLU(), torch.nn.Linear(8, 2), torch.nn.Tanh())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (torch.zeros(1, 3),), tmp_path / "a.onnx", dynamo=False, verbose=False)
    policy = read_policy(str(tmp_path / "a.onnx"), "onnx")  # for a batch of one
    assert policy.activation == "silu"
    np.testing.assert_allclose(acts(policy), net(torch.from_numpy(STATES)).detach().numpy(), atol=1e-6)


def test_a_graph_of_two_branches_is_none(tmp_path: Path) -> None:
    file = graph(tmp_path / "a.onnx", *FIRST, ("Add", weights(8)), *LAST, ("Tanh",))
    model = onnx.load(file)
    model.graph.node[2].input[0] = "action0"  # past the ReLU, which the next but one takes
    model.graph.node[3].op_type, model.graph.node[3].input[:] = "Mul", ["action2", "action1"]
    model.graph.node[4].input[:] = ["action3", "action3_0"]
    model.graph.node[4].op_type = "MatMul"
    onnx.save(model, file)
    with pytest.raises(NotLayersError):
        read_policy(str(file), "onnx", family="gaussian")


# ---- metadata ----------------------------------------------------------------------------------------------------


def altered(file: Path, **changes: Any) -> None:
    model = onnx.load(file)
    (entry,) = model.metadata_props
    said = json.loads(entry.value)
    for name, value in changes.items():
        said[name] = {**said[name], **value} if isinstance(said[name], dict) else value
    entry.value = json.dumps(said)
    onnx.save(model, file)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"actor": {"hidden": [8, 7]}}, "hidden is [8, 7], and in its graph it is [8, 6]"),
        ({"actor": {"activation": "tanh"}}, "activation is 'tanh', and in its graph it is 'relu'"),
        ({"actor": {"kind": "gaussian", "mean": "linear"}}, "mean is 'linear', and in its graph it is 'tanh'"),
        ({"actor": {"action_dim": 3}}, "action_dim is 3"),
        ({"actor": {"kind": "gaussian"}}, "has not the σ of its family"),
        ({"log_std": {"bias": [0.0]}}, "has weight (2, 6) and bias (1,)"),
        ({"log_std": {"bias": [0.0, float("nan")]}}, "NaN"),
        ({"log_std": {"scale": "a"}}, "not what `o2o policy export` writes"),
        ({"log_std": 3}, "not what `o2o policy export` writes"),
    ],
)
def test_metadata_that_contradicts_its_graph_is_one_line(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    file = exported(tmp_path, "squashed_gaussian")[1]
    model = onnx.load(file)
    if changes == {"log_std": 3}:
        model.metadata_props[0].value = json.dumps({**json.loads(model.metadata_props[0].value), **changes})
        onnx.save(model, file)
    else:
        altered(file, **changes)
    with pytest.raises(UserError) as caught:
        read_policy(str(file), "onnx")
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_weight_that_was_changed_is_another_policy_and_proved_as_such(tmp_path: Path) -> None:
    file = exported(tmp_path, "squashed_gaussian")[1]
    before, model = run(file), onnx.load(file)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "weight1")
    changed = numpy_helper.to_array(weight).copy()
    changed[0, 0] += 1.0
    weight.CopyFrom(numpy_helper.from_array(changed, "weight1"))
    onnx.save(model, file)
    assert np.abs(run(file) - before).max() > 0.01
    np.testing.assert_allclose(acts(read_policy(str(file), "onnx")), unit(run(file)), atol=1e-6)


def test_weights_that_overflow_are_refused_without_a_warning(tmp_path: Path) -> None:
    file = graph(tmp_path / "a.onnx", ("Gemm", np.full((3, 8), 3e38, F)), ("Relu",), *LAST, ("Tanh",))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(NotLayersError):
            read_policy(str(file), "onnx")


@pytest.mark.parametrize("kind", ["gaussian_head", "gaussian_released_head"])
def test_a_family_that_is_not_imported_comes_in_as_its_mean_alone(tmp_path: Path, kind: str) -> None:
    file = exported(tmp_path, kind)[1]
    with pytest.raises(NotLayersError):
        read_policy(str(file), "onnx")
    np.testing.assert_allclose(acts(read_policy(str(file), "onnx", family="deterministic")), unit(run(file)), atol=1e-6)


def test_an_environment_of_other_actions_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = graph(tmp_path / "a.onnx", *FIRST, ("Gemm", weights(8, 1)), ("Tanh",))
    line = ["policy", "import", str(file), "--out", str(tmp_path / "a.ckpt"), "--episodes", "0"]
    assert main([*line, "--env_id", "Pendulum-v1"]) == 2
    assert "--actions unit" in capsys.readouterr().err
    assert main([*line, "--env_id", "Pendulum-v1", "--actions", "unit"]) == 0


def test_inspect_shows_the_layers_of_a_graph_and_calls_another_a_black_box(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["policy", "inspect", str(exported(tmp_path, "gaussian")[1]), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["hidden"], len(found["layers"])) == ("gaussian", [8, 6], 4)
    other = graph(tmp_path / "b.onnx", ("Softplus",), *FIRST, *LAST)
    assert main(["policy", "inspect", str(other), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["notes"] == ["a black box"]
