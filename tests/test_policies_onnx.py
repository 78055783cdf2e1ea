"""ONNX files as tools write them: their side files, fixed batches, precisions and outputs, and what they may not do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from o2o_lightning.errors import UserError
from o2o_lightning.policies.black_box import black_box
from o2o_lightning.policies.onnx_file import load_onnx
from o2o_lightning.policies.source import BadPolicy

STATES = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
WEIGHT = np.random.default_rng(1).normal(size=(3, 2)).astype(np.float32)
ACTIONS = np.tanh(STATES @ WEIGHT)


def linear(
    shape: list[Any], kind: int = TensorProto.FLOAT, outputs: dict[str, np.ndarray] | None = None
) -> onnx.ModelProto:
    """tanh of one product, from observations of ``shape``; or named products, one for each of ``outputs``."""
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    named = {"y": WEIGHT} if outputs is None else outputs
    nodes, constants = [], []
    for name, weight in named.items():
        constants.append(numpy_helper.from_array(weight.astype(dtype), f"w_{name}"))
        nodes += [helper.make_node("MatMul", ["o", f"w_{name}"], [f"h_{name}"])]
        nodes += [helper.make_node("Tanh", [f"h_{name}"], [name])]
    given = [helper.make_tensor_value_info(name, kind, [*shape[:-1], None]) for name in named]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("o", kind, shape)], given, constants)
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 13)])


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.DOUBLE])
@pytest.mark.parametrize("shape", [["batch", 3], [1, 3], [3], [7, 3], [None, 3]])
def test_a_model_is_run_in_the_batch_and_the_precision_that_it_was_written_for(
    tmp_path: Path, shape: list[Any], kind: int
) -> None:
    onnx.save(linear(shape, kind), tmp_path / "a.onnx")
    teacher = black_box(str(tmp_path / "a.onnx"), "onnx", (3, 2), None)
    np.testing.assert_allclose(teacher.act(STATES), ACTIONS, atol=1e-6)


def test_weights_in_a_side_file_are_read(tmp_path: Path) -> None:
    onnx.save(
        linear(["n", 3]), tmp_path / "a.onnx", save_as_external_data=True, location="a.onnx.data", size_threshold=0
    )
    assert (tmp_path / "a.onnx.data").exists()
    np.testing.assert_allclose(load_onnx(str(tmp_path / "a.onnx"), 2)(STATES), ACTIONS, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"location": "../secret"}, "outside of its folder"),
        ({"location": "deeper/secret"}, "outside of its folder"),
        ({"location": "/etc/hostname"}, "outside of its folder"),
        ({"location": "link"}, "outside of its folder"),
        ({"location": "absent"}, "is not beside it"),
        ({"location": "."}, "outside of its folder"),
        ({"offset": "9999999999"}, "of 24"),
        ({"length": "9999999999"}, "of 24"),
        ({"offset": "-8"}, "of 24"),
        ({"length": "8"}, "no ONNX file that can be read"),
    ],
)
def test_a_side_file_is_of_the_same_folder_and_size(tmp_path: Path, changes: dict[str, str], said: str) -> None:
    folder = tmp_path / "model"
    (folder / "deeper").mkdir(parents=True)
    for place in (tmp_path / "secret", folder / "deeper/secret", folder / "weights"):
        place.write_bytes(WEIGHT.tobytes())
    (folder / "link").symlink_to(tmp_path / "secret")
    model = linear(["n", 3])
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in ({"location": "weights"} | changes).items():
        tensor.external_data.add(key=key, value=value)
    (folder / "a.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BadPolicy, match=said):
        load_onnx(str(folder / "a.onnx"), 2)


OTHER = np.ones((3, 2), np.float32)


@pytest.mark.parametrize(
    "outputs",
    [
        {"action": WEIGHT, "log_std": OTHER},
        {"log_prob_std": OTHER, "value": OTHER, "mu": WEIGHT},
        {"value": np.ones((3, 1), np.float32), "any": WEIGHT},
        {"42": WEIGHT, "log_std": OTHER},
    ],
)
def test_of_several_outputs_shape_and_name_tell_the_action(tmp_path: Path, outputs: dict[str, np.ndarray]) -> None:
    onnx.save(linear(["n", 3], outputs=outputs), tmp_path / "a.onnx")
    np.testing.assert_allclose(load_onnx(str(tmp_path / "a.onnx"), 2)(STATES), ACTIONS, atol=1e-6)


def test_outputs_that_fit_alike_are_refused_by_name(tmp_path: Path) -> None:
    onnx.save(linear(["n", 3], outputs={"15": WEIGHT, "16": OTHER}), tmp_path / "a.onnx")
    with pytest.raises(BadPolicy, match="'15', '16' fit alike"):
        load_onnx(str(tmp_path / "a.onnx"), 2)(STATES)


def test_a_model_that_draws_its_actions_is_refused(tmp_path: Path) -> None:
    model = linear(["n", 3])
    model.graph.node[1].output[0] = "h"
    model.graph.node.append(helper.make_node("RandomNormalLike", ["h"], ["r"]))
    model.graph.node.append(helper.make_node("Add", ["h", "r"], ["y"]))
    onnx.save(model, tmp_path / "a.onnx")
    with pytest.raises(UserError, match="at random"):
        black_box(str(tmp_path / "a.onnx"), "onnx", (3, 2), None)


def test_a_model_that_would_take_all_memory_is_one_line(tmp_path: Path) -> None:
    model = linear(["n", 3])
    huge = numpy_helper.from_array(np.array([1 << 34, 2], np.int64), "huge")
    model.graph.initializer.append(huge)
    model.graph.node[1].output[0] = "h"
    model.graph.node.append(helper.make_node("ConstantOfShape", ["huge"], ["c"]))
    model.graph.node.append(helper.make_node("ReduceMax", ["c"], ["m"]))
    model.graph.node.append(helper.make_node("Add", ["h", "m"], ["y"]))
    onnx.save(model, tmp_path / "a.onnx")
    with pytest.raises(UserError) as caught:
        black_box(str(tmp_path / "a.onnx"), "onnx", (3, 2), None)
    assert "\n" not in str(caught.value)


def graph_of(node: onnx.NodeProto, weight: onnx.TensorProto, kind: int = onnx.TensorProto.FLOAT) -> onnx.ModelProto:
    """``node`` from observations and ``weight`` "w" to actions, three of both."""
    ends = [helper.make_tensor_value_info(name, kind, ["batch", 3]) for name in ("observation", "y")]
    graph = helper.make_graph([node], "policy", ends[:1], ends[1:], [weight])
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 13)])


def test_a_foreign_onnx_file_of_other_operators_and_types_is_run(tmp_path: Path) -> None:
    softplus = helper.make_node("Softplus", ["observation"], ["y"])
    onnx.save(graph_of(softplus, numpy_helper.from_array(np.ones(2, np.float32), "w")), tmp_path / "a.onnx")
    np.testing.assert_allclose(load_onnx(str(tmp_path / "a.onnx"), 3)(STATES), np.log1p(np.exp(STATES)), rtol=1e-5)
    for dtype in (np.float16, np.float64):
        double = numpy_helper.from_array(np.array(2, dtype), "w")
        node = helper.make_node("Mul", ["observation", "w"], ["y"])
        onnx.save(graph_of(node, double, double.data_type), tmp_path / "b.onnx")
        found = load_onnx(str(tmp_path / "b.onnx"), 3)(STATES)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, STATES.astype(dtype) * 2)


def test_an_onnx_file_that_could_do_more_than_compute_is_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    weight = numpy_helper.from_array(np.ones(3, np.float32), "w")
    outside = numpy_helper.from_array(np.ones(3, np.float32), "w")
    onnx.external_data_helper.set_external_data(outside, "weights")
    outside.ClearField("raw_data")
    mul = helper.make_node("Mul", ["observation", "w"], ["y"])
    constant, loop = helper.make_node("Constant", [], ["y"], value=outside), graph_of(mul, weight).graph
    function = graph_of(mul, weight)
    function.functions.append(helper.make_function("", "F", ["x"], ["x"], [], [helper.make_opsetid("", 13)]))
    bad = {
        "is not beside it": [graph_of(mul, outside), graph_of(constant, weight)],
        "not ONNX's own": [graph_of(helper.make_node("Mul", ["observation"], ["y"], domain="a.b"), weight), function],
        "loops": [graph_of(helper.make_node("Loop", ["", "", "observation"], ["y"], body=loop), weight)],
        "no ONNX file": [graph_of(helper.make_node("Nothing", ["observation"], ["y"]), weight)],
    }
    for said, models in bad.items():
        for model in models:
            Path("a.onnx").write_bytes(model.SerializeToString())
            with pytest.raises(BadPolicy, match=said):
                load_onnx("a.onnx", 3)


def test_a_damaged_onnx_file_is_one_line_and_no_traceback(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.ones(3, np.float32), "w")
    good = graph_of(helper.make_node("Mul", ["observation", "w"], ["y"]), weight).SerializeToString()
    path, draw = tmp_path / "a.onnx", np.random.default_rng(0)
    for size in range(len(good)):
        path.write_bytes(good[:size])
        with pytest.raises(BadPolicy, match="no ONNX file that can be read"):
            load_onnx(str(path), 3)
    for _ in range(300):
        damaged = bytearray(good)
        damaged[draw.integers(len(good))] = draw.integers(256)
        path.write_bytes(damaged)
        try:
            load_onnx(str(path), 3)
        except BadPolicy as error:
            assert "\n" not in str(error)
