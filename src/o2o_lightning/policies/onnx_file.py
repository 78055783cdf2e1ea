"""ONNX files without ONNX: writes a perceptron as a graph, and runs graphs of perceptrons with NumPy.

Only the protocol-buffer fields that such graphs need (onnx.proto3, IR version 8, operator set 13).
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from o2o_lightning.nn.actor import FloatArray

FLOAT = 1
_DTYPES = {1: np.float32, 6: np.int32, 7: np.int64, 11: np.float64}
Message = defaultdict[int, list[Any]]  # values by field number, in order: numbers, and bytes of what else there is


@dataclass
class Node:
    """One operator of a graph."""

    op: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass
class Graph:
    """Operators in order, constants by name, and the names and widths of what goes in and comes out."""

    nodes: list[Node]
    constants: dict[str, NDArray[Any]]
    inputs: list[str]
    outputs: list[str]
    widths: tuple[int, int] = (0, 0)


class UnknownOperatorError(Exception):
    """An operator that is not run here."""


# ---- running -----------------------------------------------------------------------------------------------------


def run(graph: Graph, observation: FloatArray) -> FloatArray:
    """The graph's first output for ``observation`` as its first input.

    Raises:
        UnknownOperatorError: the graph is more than a perceptron.
    """
    values: dict[str, Any] = {**graph.constants, "": None}
    values[next(name for name in graph.inputs if name not in graph.constants)] = observation
    for node in graph.nodes:
        if node.op not in _OPERATORS:
            raise UnknownOperatorError(node.op)
        values[node.outputs[0]] = _OPERATORS[node.op]([values[name] for name in node.inputs], node.attributes)
    return np.asarray(values[graph.outputs[0]], np.float32)


def _gemm(x: list[Any], attributes: dict[str, Any]) -> Any:
    a = x[0].T if attributes.get("transA") else x[0]
    b = x[1].T if attributes.get("transB") else x[1]
    product = attributes.get("alpha", 1.0) * (a @ b)
    return product if len(x) < 3 else product + attributes.get("beta", 1.0) * x[2]


def _clip(x: list[Any], attributes: dict[str, Any]) -> Any:
    low = x[1] if len(x) > 1 else attributes.get("min")
    high = x[2] if len(x) > 2 else attributes.get("max")
    return np.clip(x[0], low, high)


_OPERATORS: dict[str, Callable[[list[Any], dict[str, Any]], Any]] = {
    "Gemm": _gemm,
    "Clip": _clip,
    "MatMul": lambda x, _: x[0] @ x[1],
    "Add": lambda x, _: x[0] + x[1],
    "Sub": lambda x, _: x[0] - x[1],
    "Mul": lambda x, _: x[0] * x[1],
    "Div": lambda x, _: x[0] / x[1],
    "Relu": lambda x, _: np.maximum(x[0], 0),
    "Tanh": lambda x, _: np.tanh(x[0]),
    "Sigmoid": lambda x, _: 1 / (1 + np.exp(-x[0])),
    "Elu": lambda x, a: np.where(x[0] > 0, x[0], a.get("alpha", 1.0) * np.expm1(np.minimum(x[0], 0))),
    "LeakyRelu": lambda x, a: np.where(x[0] > 0, x[0], a.get("alpha", 0.01) * x[0]),
    "Identity": lambda x, _: x[0],
    "Constant": lambda _, a: a["value"],
    "Cast": lambda x, a: np.asarray(x[0], _DTYPES.get(a["to"], np.float32)),
    "Flatten": lambda x, _: x[0].reshape(len(x[0]), -1),
}


# ---- writing -----------------------------------------------------------------------------------------------------


def encode(graph: Graph, name: str) -> bytes:
    """The graph as the bytes of an ONNX file; batch size is free."""
    constants = [_tensor(key, value) for key, value in graph.constants.items()]
    ends = {11: _value_info(graph.inputs[0], graph.widths[0]), 12: _value_info(graph.outputs[0], graph.widths[1])}
    body = _pack({1: [_node(node) for node in graph.nodes], 2: name, 5: constants, **ends})
    return _pack({1: 8, 2: "o2o-lightning", 7: body, 8: _pack({1: "", 2: 13})})


def _node(node: Node) -> bytes:
    # whole numbers are all the attributes that are written here
    attributes = [_pack({1: name, 3: value, 20: 2}) for name, value in node.attributes.items()]
    return _pack({1: node.inputs, 2: node.outputs, 4: node.op, 5: attributes})


def _tensor(name: str, value: NDArray[Any]) -> bytes:
    array = np.ascontiguousarray(value, "<f4")
    return _pack({1: [*array.shape], 2: FLOAT, 8: name, 9: array.tobytes()})


def _value_info(name: str, width: int) -> bytes:
    shape = _pack({1: [_pack({2: "batch"}), _pack({1: width})]})
    return _pack({1: name, 2: _pack({1: _pack({1: FLOAT, 2: shape})})})


def _pack(fields: dict[int, Any]) -> bytes:
    """A message of numbers, texts, bytes, and lists of such, by field number."""
    out = b""
    for number, values in fields.items():
        for value in values if isinstance(values, list) else [values]:
            if isinstance(value, int):
                out += _varint(number << 3) + _varint(value)
            else:
                content = value.encode() if isinstance(value, str) else value
                out += _varint(number << 3 | 2) + _varint(len(content)) + content
    return out


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


# ---- reading -----------------------------------------------------------------------------------------------------


def decode(content: bytes) -> Graph:
    """The main graph of an ONNX file; an exception of any kind for bytes that are none."""
    body = _message(_first(_message(content), 7))
    nodes = [_read_node(_message(part)) for part in body[1]]
    constants = dict(_read_tensor(_message(part)) for part in body[5])
    inputs, outputs = ([_first(_message(part), 1).decode() for part in body[number]] for number in (11, 12))
    if not nodes or not inputs or not outputs:
        raise ValueError("it has no graph")
    return Graph(nodes, constants, inputs, outputs)


def _read_node(node: Message) -> Node:
    attributes = dict(_read_attribute(_message(part)) for part in node[5])
    inputs, outputs = ([part.decode() for part in node[number]] for number in (1, 2))
    return Node(_first(node, 4).decode(), inputs, outputs, attributes)


def _read_attribute(attribute: Message) -> tuple[str, Any]:
    value: Any = None
    if attribute[2]:
        value = struct.unpack("<f", attribute[2][0])[0]
    elif attribute[3]:
        value = attribute[3][0] if attribute[3][0] < 2**63 else attribute[3][0] - 2**64
    elif attribute[5]:
        value = _read_tensor(_message(attribute[5][0]))[1]
    return _first(attribute, 1).decode(), value


def _read_tensor(tensor: Message) -> tuple[str, NDArray[Any]]:
    if tensor[13] or tensor[14]:
        raise ValueError("its weights lie in another file")
    kind = tensor[2][0] if tensor[2] else FLOAT
    if kind not in _DTYPES:
        raise ValueError(f"a tensor of data type {kind}")
    if any(tensor[9]):
        array = np.frombuffer(tensor[9][0], _DTYPES[kind])
    else:
        floats = b"".join(tensor[4])
        array = np.array([*struct.unpack(f"<{len(floats) // 4}f", floats), *_whole(tensor[7])], _DTYPES[kind])
    return (tensor[8][0].decode() if tensor[8] else ""), array.reshape(_whole(tensor[1]))


def _whole(values: list[Any]) -> list[int]:
    """Whole numbers, of which several may be packed into one value."""
    numbers: list[int] = []
    for value in values:
        if isinstance(value, int):
            numbers.append(value)
            continue
        at = 0
        while at < len(value):
            number, at = _read_varint(value, at)
            numbers.append(number)
    return numbers


def _first(message: Message, number: int) -> Any:
    if not message[number]:
        raise ValueError(f"field {number} is missing")
    return message[number][0]


def _message(content: bytes) -> Message:
    found: Message = defaultdict(list)
    at = 0
    while at < len(content):
        tag, at = _read_varint(content, at)
        kind = tag & 7
        if kind == 0:
            value, at = _read_varint(content, at)
            found[tag >> 3].append(value)
            continue
        if kind == 2:
            size, at = _read_varint(content, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if at + size > len(content):
            raise ValueError("it is cut off")
        found[tag >> 3].append(content[at : at + size])
        at += size
    return found


def _read_varint(content: bytes, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while shift < 70:
        byte = content[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise ValueError("a number that does not end")
