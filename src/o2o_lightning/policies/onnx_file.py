"""ONNX policies: looked through, run by ONNX Runtime, and written. Needs the extra ``onnx``."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from o2o_lightning.nn.actor import ActorSpec, FloatArray
from o2o_lightning.nn.mlp import MLP
from o2o_lightning.nn.normalizer import Normalizer
from o2o_lightning.policies.names import meaning
from o2o_lightning.policies.source import CLONE, MAX_BYTES, Array, BadPolicy, read_limited, readable

# what operators are told by; no graphs, which would be loops and branches, and nothing sparse
VALUES = {onnx.AttributeProto.AttributeType.Value(name) for name in (
    "FLOAT", "INT", "STRING", "TENSOR", "FLOATS", "INTS", "STRINGS",
)}  # fmt: skip
MOST_NODES = 10_000
METADATA = "o2o-lightning"  # the key of what an export says of itself
INPUTS = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16}
# each activation as ONNX operators over its input: (operator, other constants), "x" for the input again
ACTIVATIONS: dict[str, list[tuple[str, list[float | str]]]] = {
    "relu": [("Relu", [])],
    "tanh": [("Tanh", [])],
    "elu": [("Elu", [])],
    "leaky_relu": [("LeakyRelu", [])],
    "silu": [("Sigmoid", []), ("Mul", ["x"])],
    "gelu": [("Div", [2.0**0.5]), ("Erf", []), ("Add", [1.0]), ("Mul", ["x"]), ("Mul", [0.5])],
}


def load_onnx(spec: str, actions: int) -> Callable[[FloatArray], Any]:
    """The function ``[B, S] → [B, A]`` of an ONNX file, in the batches and the precision that it was written for.

    Raises:
        BadPolicy: unreadable, more than a graph of ONNX's operators on observations, or two outputs that fit alike.
    """
    model = _checked(Path(spec))
    with readable("it is no ONNX file that can be read", "Export it again."):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        # operators as they are: none is computed before it is asked for, nor in another precision
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        content = model.SerializeToString()
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        return _function(session, actions)


def _checked(path: Path) -> onnx.ModelProto:
    with readable("it is no ONNX file that can be read", "Export it again."):
        model = onnx.load_model_from_string(read_limited(path))
        if reason := _not_run(model):
            raise BadPolicy(f"it has {reason}, so it was not loaded. Export it again with plain operators. {CLONE}")
        _embed(model, path.parent)
        onnx.checker.check_model(model)
    return model


class Node(NamedTuple):
    """An operator, what it takes and gives by name, and its attributes."""

    op: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any]


class Graph(NamedTuple):
    """What a model computes, in plain values: ``nodes`` in their order, ``constants`` ``said`` beside it."""

    inputs: list[str]
    outputs: list[str]
    nodes: list[Node]
    constants: dict[str, Array]
    said: str | None


def graph_of(spec: str) -> Graph:
    """The graph of an ONNX file.

    Raises:
        BadPolicy: as :func:`load_onnx`.
    """
    model = _checked(Path(spec))
    with readable("it is no ONNX file that can be read", "Export it again."):
        constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        nodes = []
        for node in model.graph.node:
            told = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
            if node.op_type == "Constant":
                held = next(iter(told.values()))
                plain = isinstance(held, onnx.TensorProto)
                constants[node.output[0]] = numpy_helper.to_array(held) if plain else np.asarray(held)
            else:
                nodes.append(Node(node.op_type, [*node.input], [*node.output], told))
        numbers = {name: part.astype(np.float64) for name, part in constants.items() if part.dtype.kind in "fiu"}
        taken = [end.name for end in model.graph.input if end.name not in constants]
        said = {entry.key: entry.value for entry in model.metadata_props}.get(METADATA)
        return Graph(taken, [end.name for end in model.graph.output], nodes, numbers, said)


def facts(spec: str) -> dict[str, list[str]]:
    """Inputs, outputs and operators that an ONNX file says it has; its weights are not read."""
    with readable("it is no ONNX file that can be read", "Export it again."):
        graph = onnx.load_model_from_string(read_limited(Path(spec))).graph
        ends = [
            [f"{end.name}: {[d.dim_param or d.dim_value for d in end.type.tensor_type.shape.dim]}" for end in part]
            for part in (graph.input, graph.output)
        ]
        return {"inputs": ends[0], "outputs": ends[1], "operators": sorted({node.op_type for node in graph.node})}


def _function(session: Any, actions: int) -> Callable[[FloatArray], Any]:
    taken, names = session.get_inputs(), [output.name for output in session.get_outputs()]
    if len(taken) != 1 or taken[0].type not in INPUTS or len(taken[0].shape) not in (1, 2):
        shown = ", ".join(f"{entry.name}: {entry.type} {entry.shape}" for entry in taken)
        raise BadPolicy(f"it takes {shown}, and a policy takes observations [B, S] alone. Export its actor alone.")
    name, dtype, shape = taken[0].name, INPUTS[taken[0].type], taken[0].shape
    batch = 1 if len(shape) == 1 else shape[0]  # a name where any number will do

    def run(observation: FloatArray) -> Any:
        rows = len(observation)
        size, found = batch if isinstance(batch, int) and batch > 0 else rows, []
        for start in range(0, rows, size):
            block = observation[start : start + size].astype(dtype)
            whole = np.concatenate((block, np.repeat(block[-1:], size - len(block), 0)))
            outputs = session.run(None, {name: whole[0] if len(shape) == 1 else whole})
            found.append(_action(names, outputs, size, actions)[: len(block)])
        return np.concatenate(found)

    return run


def _action(names: list[str], outputs: list[Any], rows: int, actions: int) -> Any:
    """The only output, or that which its shape and then its name say is the action."""
    arrays = {name: np.asarray(found) for name, found in zip(names, outputs, strict=True)}
    fitting = [name for name, found in arrays.items() if found.size == rows * actions]
    if len(fitting) > 1:
        said = {name: meaning(name) for name in fitting}
        fitting = [name for name in fitting if said[name] == "mean"] or [name for name in fitting if said[name] is None]
        if len(fitting) != 1:
            raise BadPolicy(
                f"its outputs {', '.join(map(repr, said))} fit alike. Export the action alone, or name it `action`."
            )
    if len(names) > 1 and not fitting:
        shapes = ", ".join(f"'{name}' {found.shape}" for name, found in arrays.items())
        raise BadPolicy(
            f"none of its outputs ({shapes}) is {actions} actions for {rows} observations. Export its actor."
        )
    found = arrays[fitting[0] if fitting else names[0]]
    return found.reshape(rows, actions) if fitting else found


def _not_run(model: onnx.ModelProto) -> str | None:
    """What a policy's graph does without: without loops it ends."""
    nodes = model.graph.node
    if len(nodes) > MOST_NODES:
        return f"{len(nodes):,} operators"
    foreign = any(node.domain not in ("", "ai.onnx") for node in nodes)
    reasons = {
        "functions or operators that are not ONNX's own": model.functions or foreign,
        "loops, branches or sparse tensors": model.graph.sparse_initializer
        or any(attribute.type not in VALUES for node in nodes for attribute in node.attribute),
    }
    return next((text for text, holds in reasons.items() if holds), None)


def _embed(model: onnx.ModelProto, folder: Path) -> None:
    """Takes weights that lie in other files of the same folder into the model; no other file is opened."""
    total = 0
    for tensor in _tensors(model):
        if not tensor.data_location and not tensor.external_data:
            continue
        said = {entry.key: entry.value for entry in tensor.external_data}
        place = (folder / said.get("location", "")).resolve()
        if place.parent != folder.resolve():
            where = ascii(said.get("location"))
            raise BadPolicy(f"its weights are in {where}, outside of its folder. Export it again.")
        if not place.is_file():
            raise BadPolicy(
                f"its weights are in {place.name}, which is not beside it. Copy it there, or export with "
                "external_data=False."
            )
        start, held = int(said.get("offset", 0)), place.stat().st_size
        length = int(said.get("length", max(held - start, 0)))
        total += length
        if start < 0 or length < 0 or start + length > held or total > MAX_BYTES:
            raise BadPolicy(f"'{tensor.name}' is to be {length:,} bytes of {place.name}, of {held:,}. Copy it again.")
        with place.open("rb") as file:
            file.seek(start)
            tensor.raw_data = file.read(length)
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    yield from model.graph.initializer
    yield from (attribute.t for node in model.graph.node for attribute in node.attribute if attribute.HasField("t"))


def write_onnx(
    body: MLP, spec: ActorSpec, normalizer: Normalizer, low: Tensor, reach: Tensor, said: str
) -> onnx.ModelProto:
    """An actor from raw observations to actions in ``low … low + 2 reach`` as basic operators, for any batch.

    ``said`` is the metadata.
    """
    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []
    at = "observation"

    def add(op: str, *others: tuple[str, Tensor] | str, **attributes: Any) -> None:
        nonlocal at
        for other in others:
            if isinstance(other, tuple):
                constants.append(numpy_helper.from_array(other[1].detach().cpu().float().numpy(), other[0]))
        names = [at, *(other if isinstance(other, str) else other[0] for other in others)]
        nodes.append(helper.make_node(op, names, [f"x{len(nodes)}"], **attributes))
        at = nodes[-1].output[0]

    add("Sub", ("mean", normalizer.mean))
    add("Div", ("deviation", normalizer.std + normalizer.eps))
    if normalizer.clip is not None:
        add("Clip", ("lowest", torch.tensor(-normalizer.clip)), ("highest", torch.tensor(normalizer.clip)))
    layers = [(part.weight, part.bias) for part in body.linears if isinstance(part, nn.Linear)]
    for i, (weight, bias) in enumerate(layers):
        rows = spec.action_dim if i == len(layers) - 1 else len(bias)  # the log σ half of the output is left out
        add("Gemm", (f"weight{i}", weight[:rows]), (f"bias{i}", bias[:rows]), transB=1)
        before = at
        for op, others in ACTIVATIONS[spec.activation] if i < len(layers) - 1 else []:
            add(op, *(before if part == "x" else (f"{op}{len(nodes)}", torch.tensor(part)) for part in others))
    if spec.kind != "gaussian" or spec.mean == "tanh":
        add("Tanh")
    else:
        add("Clip", ("least", torch.tensor(-1.0)), ("most", torch.tensor(1.0)))
    add("Add", ("one", torch.ones(())))
    add("Mul", ("reach", reach))
    add("Add", ("low", low))
    taken = helper.make_tensor_value_info("observation", onnx.TensorProto.FLOAT, ["batch", spec.observation_dim])
    given = helper.make_tensor_value_info(at, onnx.TensorProto.FLOAT, ["batch", spec.action_dim])
    graph = helper.make_graph(nodes, "policy", [taken], [given], constants)
    opset = [helper.make_opsetid("", 13)]
    model = helper.make_model(graph, producer_name="o2o-lightning", ir_version=8, opset_imports=opset)
    helper.set_model_props(model, {METADATA: said})
    return model
