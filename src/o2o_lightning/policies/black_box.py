"""Policies that are only functions: they are distilled by the clone phase.

A function is the user's own code, and TorchScript and ``torch.export`` files are programs: they are run only when
named as such, never by detection.
"""

import importlib
import io
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx.reference import ReferenceEvaluator

from o2o_lightning.envs.make import EnvSpec, unit_actions
from o2o_lightning.launch import search_here
from o2o_lightning.nn.actor import FloatArray
from o2o_lightning.policies.history import Teacher
from o2o_lightning.policies.program import load_program
from o2o_lightning.policies.source import BadPolicy, read_limited, readable, reading

ONNX_VALUES = {onnx.AttributeProto.AttributeType.Value(name) for name in (
    "FLOAT", "INT", "STRING", "TENSOR", "FLOATS", "INTS", "STRINGS",
)}  # fmt: skip
ELSEWHERE = "weights in another file"
Function = Callable[[FloatArray], Any]


def black_box(spec: str, format: str, sizes: tuple[int, int], env: EnvSpec | None) -> Teacher:
    """The function that ``spec`` names, as a teacher.

    Its actions are in the environment's own units, and become ``[-1, 1]`` by ``env``'s bounds; without ``env`` they
    are there already. ``sizes`` are the observation and action widths that it must have.

    Raises:
        UserError: it cannot be loaded, or does not map ``[B, S]`` to ``[B, A]``.
    """
    with reading(spec):
        if format not in FORMATS:
            raise BadPolicy(f"it is a {format} file, no black box. Import it first: `o2o policy import {spec}`.")
        function = FORMATS[format](spec)

    @reading(spec)
    def act(observation: FloatArray) -> FloatArray:
        wrong = f"it failed on observations {observation.shape}"
        with readable(wrong, "It must map float32 [B, S] to actions [B, A]."):
            found = function(observation.copy())  # it may write into what it gets, and that is the dataset
        if isinstance(found, torch.Tensor):
            found = found.detach().cpu().numpy()
        actions = np.asarray(found, np.float32)
        fits = actions.shape == (len(observation), sizes[1])
        if not fits or not np.isfinite(actions).all():
            what = "NaN or infinity" if fits else f"shape {actions.shape}"
            raise BadPolicy(
                f"it gives {what} for {len(observation)} observations of {sizes[0]} values, and "
                f"[{len(observation)}, {sizes[1]}] is needed. Pass the dataset and environment it belongs to."
            )
        unit = actions if env is None else unit_actions(actions, env.action_low, env.action_high)
        return np.clip(unit, -1.0, 1.0)

    act(np.zeros((2, sizes[0]), np.float32))
    return Teacher(act)


def _callable(spec: str) -> Function:
    module, _, name = spec.partition(":")
    search_here()
    with readable("it cannot be imported", "Name a function of an importable module: module:function."):
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    if not callable(found):
        raise BadPolicy(f"'{name}' is {type(found).__name__}, no function. Name one that maps [B, S] to [B, A].")
    function: Function = found
    return function


def load_onnx(spec: str) -> Function:
    """The function of an ONNX file, run by ONNX's reference; by ONNX Runtime, if it is there, where only that can."""
    content = read_limited(Path(spec))
    with readable("it is no ONNX file that can be read", "Export it again."):
        model = onnx.load_model_from_string(content)
        if reason := _not_run(model):
            if reason != ELSEWHERE and find_spec("onnxruntime") is not None:
                return _onnxruntime(content)
            raise BadPolicy(
                f"it has {reason}, so it was not loaded. Export it again as one file of plain operators, or wrap it in "
                "a Python function and clone that: `o2o policy clone module:function`."
            )
        onnx.checker.check_model(model)
        evaluator = ReferenceEvaluator(model)
        constants = {tensor.name for tensor in model.graph.initializer}  # older files name them as inputs too
        taken = next(value for value in model.graph.input if value.name not in constants)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(taken.type.tensor_type.elem_type)

    def run(observation: FloatArray) -> Any:
        return evaluator.run(None, {taken.name: observation.astype(dtype)})[0]  # type: ignore[index,unused-ignore]

    return run


def _onnxruntime(content: bytes) -> Function:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda observation: session.run(None, {name: observation})[0]


def _not_run(model: onnx.ModelProto) -> str | None:
    """What a policy's graph does without: without loops it ends, and no other file is opened."""
    attributes = [attribute for node in model.graph.node for attribute in node.attribute]
    tensors = [*model.graph.initializer, *(attribute.t for attribute in attributes)]
    foreign = any(node.domain not in ("", "ai.onnx") for node in model.graph.node)
    reasons = {
        "functions or operators that are not ONNX's own": model.functions or foreign,
        "loops, branches or sparse tensors": any(attribute.type not in ONNX_VALUES for attribute in attributes),
        ELSEWHERE: any(tensor.data_location or tensor.external_data for tensor in tensors),
    }
    return next((text for text, holds in reasons.items() if holds), None)


def _torchscript(spec: str) -> Function:
    content = io.BytesIO(read_limited(Path(spec)))
    with readable("it is no TorchScript file that can be read", "Save it again."):
        return _module(torch.jit.load(content, map_location="cpu").eval())  # type: ignore[no-untyped-call]


def _module(module: Any) -> Function:
    def run(observation: FloatArray) -> Any:
        with torch.no_grad():
            return module(torch.from_numpy(observation))

    return run


FORMATS: dict[str, Callable[[str], Function]] = {
    "callable": _callable,
    "onnx": load_onnx,
    "torchscript": _torchscript,
    "torch_export": lambda spec: _module(load_program(spec)),
}
