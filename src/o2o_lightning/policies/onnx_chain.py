"""A chain of ONNX operators from observations to actions as a perceptron's layers, its normaliser and its range."""

import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from o2o_lightning.nn.normalizer import Normalizer
from o2o_lightning.policies.black_box import onnx_tools
from o2o_lightning.policies.names import meaning
from o2o_lightning.policies.source import Array, ImportedPolicy, Linear

MOST_NODES, MOST_OUTPUTS = 200, 8  # from observations to actions
ROUNDED = 1e-6  # of the range: what a clip behind a tanh may leave of it
# x → (x − shift) / scale, for the operators that are so
AFFINE = {
    "Sub": lambda c: (c, np.ones_like(c)), "Add": lambda c: (-c, np.ones_like(c)),
    "Div": lambda c: (np.zeros_like(c), c), "Mul": lambda c: (np.zeros_like(c), 1.0 / c),
}  # fmt: skip
ALPHAS = {"Elu": 1.0, "LeakyRelu": 0.01}
SHAPES = ("Identity", "Flatten", "Reshape", "Dropout")  # of [B, N] to [B, N]; the comparison shows it
# kinds of steps: (a)ffine, (c)lip, (l)inear, (f)unction
FORM = re.compile(r"(a?)(c?)(l(?:fl)*)(f?[ac]*)")


def layers_of(graph: Any) -> ImportedPolicy | None:
    """The perceptron of the only output, or of that whose name or width says that it is the action, or None.

    Its family is not told: a tanh at its end is taken for a deterministic policy, and a mean without has no σ yet.
    """
    fitting = dict[str, ImportedPolicy]()
    for name in graph.outputs[:MOST_OUTPUTS]:
        with suppress(ValueError, IndexError), np.errstate(all="ignore"):  # operators of shapes that do not fit
            if (policy := _policy(graph, name)) is not None:
                fitting[name] = policy
    if len(graph.outputs) > 1:  # a value is one number
        acting = [name for name in graph.outputs if meaning(name) == "mean"] or [
            name for name in fitting if meaning(name) is None and fitting[name].action_dim > 1
        ]
        fitting = {name: fitting[name] for name in fitting if name in acting}
    return next(iter(fitting.values())) if len(fitting) == 1 else None


def _policy(graph: Any, output: str) -> ImportedPolicy | None:
    """What gives ``output``, with its normaliser and its actions' range, where it is a perceptron."""
    steps = _steps(graph, output)
    match = FORM.fullmatch("".join(kind for kind, *_ in steps or ()))
    if steps is None or match is None:
        return None
    front, body, end = (steps[slice(*match.span(group))] for group in (1, 3, 4))
    activations = {step[1] for step in body if step[0] == "f"}
    if len(activations) > 1 or (match[4].startswith("f") and end[0][1] != "tanh"):
        return None
    policy = ImportedPolicy("ONNX graph", "unknown", [step[1:] for step in body if step[0] == "l"])
    policy.activation = activations.pop() if activations else policy.activation
    clip = steps[match.start(2)][1:] if match[2] else None
    if (clip and clip[0] != -clip[1]) or not _take_range(policy, end):
        return None
    shift, scale = front[0][1:] if front else (np.zeros(1), np.ones(1))
    if front or clip:
        mean, std = (np.array(np.broadcast_to(part, policy.observation_dim), np.float32) for part in (shift, scale))
        if (std != 1).any() or mean.any() or clip:
            policy.normalizer = Normalizer(torch.from_numpy(mean), torch.from_numpy(std), 0.0, clip and clip[1])
    return policy


def _take_range(policy: ImportedPolicy, end: list[Any]) -> bool:
    """Follows what comes after the last layer; whether a policy's actions end so."""
    policy.mean_kind = "tanh" if end and end[0][0] == "f" else "linear"
    one = np.ones(policy.action_dim)
    low, high = (-one, one) if policy.mean_kind == "tanh" else (-np.inf * one, np.inf * one)
    for kind, first, second in (step for step in end if step[0] != "f"):
        if kind == "a":
            if not (second > 0).all():
                return False
            low, high = (low - first) / second, (high - first) / second
            policy.layers[-1] = policy.mean if policy.mean_kind == "tanh" else _scaled(policy.mean, first, second)
        elif policy.mean_kind == "linear":
            low, high = np.maximum(low, first), np.minimum(high, second)
        elif max((first - low).max(), (high - second).max()) > ROUNDED * (high - low).min():
            return False
    if np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all():
        policy.reach = low, high
        policy.bounds = policy.reach if policy.mean_kind == "linear" else None
        return True
    return bool(np.isinf(low).all() and np.isinf(high).all())


def _scaled(layer: Linear, shift: Array, scale: Array) -> Linear:
    one = np.ones_like(layer[1])
    return layer[0] / (scale * one)[:, None], (layer[1] - shift) / scale


def _steps(graph: Any, output: str) -> list[Any] | None:
    """What happens to the observation until ``output``, one after the other; None where it is no such chain."""
    names, nodes = {output}, list[Any]()
    for node in reversed(graph.nodes):  # in the order of their computation
        if names & {*node.outputs}:
            nodes.insert(0, node)
            names |= {*node.inputs}
    if len(graph.inputs) != 1 or len(nodes) > MOST_NODES:
        return None
    steps, (at,), i = list[Any](), graph.inputs, 0
    constants = {"": np.array(np.nan), **graph.constants}  # an input that is left out has no name
    while i < len(nodes):
        found, used = _function(constants, nodes[i:], at)
        if found is None:
            found = _step(constants, nodes[i], at)
        if found is None:
            return None
        i += used
        at = nodes[i - 1].outputs[0]
        _append(steps, found)
    return steps if at == output else None


def _append(steps: list[Any], step: tuple[Any, ...]) -> None:
    """Adds a step; an affine one goes into the affine or linear one before it."""
    if not step:
        return
    before = steps[-1][0] if steps and step[0] == "a" else ""
    if before == "l":
        steps[-1] = ("l", *_scaled(steps[-1][1:], *step[1:]))
    elif before == "a":
        shift, scale = steps[-1][1:]
        steps[-1] = ("a", shift + scale * step[1], scale * step[2])
    else:
        steps.append(step)


def _function(constants: Mapping[str, Array], nodes: list[Any], x: str) -> tuple[Any, int]:
    """The longest activation of ``x`` that the next nodes are, and how many they are; None and 1: none."""
    if nodes[0].op == "Gelu" and x in nodes[0].inputs:  # of tanh too, which the comparison tells
        return ("f", "gelu"), 1
    for name, parts in sorted(onnx_tools().ACTIVATIONS.items(), key=lambda entry: -len(entry[1])):
        at = x
        for node, (op, wanted) in zip(nodes, parts, strict=False):
            if node.op != op or not _is_of(node, at, [x if part == "x" else part for part in wanted], constants):
                break
            at = node.outputs[0]
        else:
            if len(nodes) >= len(parts):
                return ("f", name), len(parts)
    return None, 1


def _is_of(node: Any, at: str, wanted: list[Any], constants: Mapping[str, Array]) -> bool:
    """Whether a node takes ``at`` and the ``wanted`` names and numbers, and has no other slope than the usual one."""
    rest = [*node.inputs]
    if at not in rest or (node.op == "Div" and rest[0] != at):
        return False
    rest.remove(at)
    alpha = ALPHAS.get(node.op, 0.0)
    return len(rest) == len(wanted) and np.isclose(node.attributes.get("alpha", alpha), alpha, 1e-5) and all(
        name == part if isinstance(part, str) else name in constants and np.allclose(constants[name], part, 1e-5)
        for name, part in zip(rest, wanted, strict=True)
    )  # fmt: skip


def _step(constants: Mapping[str, Array], node: Any, at: str) -> Any:
    """A node as a step over its input ``at``, an empty one that changes nothing; None for what a policy has not."""
    if node.op in SHAPES and node.inputs[0] == at:
        return ()
    others = [constants[name] for name in node.inputs if name in constants]
    if at not in node.inputs or len(others) != len(node.inputs) - 1:
        return None
    told, first = node.attributes, node.inputs[0] == at
    if node.op in ("Gemm", "MatMul") and first and others[0].ndim == 2 and not told.get("transA"):
        weight = told.get("alpha", 1.0) * (others[0] if told.get("transB") else others[0].T)
        bias = told.get("beta", 1.0) * others[1].ravel() if len(others) > 1 else np.zeros(1)
        return ("l", weight, bias + np.zeros(len(weight))) if len(bias) in (1, len(weight)) else None
    if node.op in AFFINE and len(others) == 1 and (first or node.op in ("Add", "Mul")):
        return ("a", *AFFINE[node.op](others[0].ravel()))
    if node.op == "Clip" and first and all(other.size == 1 for other in others):
        ends = [float(other.item()) for other in others] + [np.nan] * (2 - len(others))
        told_ends = told.get("min", -np.inf), told.get("max", np.inf)
        return ("c", *(told if np.isnan(end) else end for end, told in zip(ends, told_ends, strict=True)))
    return None
