"""Policies that are only functions: they are distilled by the clone phase.

A function is the user's own code, and TorchScript and ``torch.export`` files are programs: they are run only when
named as such, never by detection.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import re
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from o2o_lightning.envs.make import EnvSpec, unit_actions
from o2o_lightning.errors import UserError
from o2o_lightning.nn.actor import FloatArray
from o2o_lightning.policies import onnx_file
from o2o_lightning.policies.source import MAX_BYTES
from o2o_lightning.policies.teacher import CallableTeacher
from o2o_lightning.policies.tensors import read_limited

# A program's graph, tensors and facts; no compiled code, no other objects.
_PROGRAM_MEMBER = re.compile(
    r"[^/]+/(archive_format|archive_version|byteorder|version|models/\w+\.json|(extra|\.data)/[\w.]+"
    r"|data/(weights|constants)/[\w.]+|data/sample_inputs/\w+\.pt|serialized_\w+\.json)"
)
FORMATS = ("callable", "onnx", "torchscript", "torch_export")
Function = Callable[[FloatArray], Any]


def black_box(spec: str, format: str, sizes: tuple[int, int], env: EnvSpec | None) -> CallableTeacher:
    """The function that ``spec`` names, as a teacher.

    Its actions are in the environment's own units, and become ``[-1, 1]`` by ``env``'s bounds.

    Args:
        spec: ``module:function``, or a file.
        format: one of :data:`FORMATS`.
        sizes: observation and action widths that it must have.
        env: bounds; None where the actions are in ``[-1, 1]`` already.

    Raises:
        UserError: it cannot be loaded, or does not map ``[B, S]`` to ``[B, A]``.
    """
    loaders = {"callable": _callable, "onnx": load_onnx, "torchscript": _torchscript, "torch_export": load_torch_export}
    if format not in loaders:
        raise UserError(
            f"policy {spec}: it is a {format} file, no black box. Import it first: `o2o policy import {spec}`."
        )
    function = loaders[format](spec)

    def act(observation: FloatArray) -> FloatArray:
        try:
            found = function(observation)
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"policy {spec}: it failed on observations {observation.shape} ({type(error).__name__}: {error})."
                " It must map float32 [B, S] to actions [B, A]."
            ) from error
        if isinstance(found, torch.Tensor):
            found = found.detach().cpu().numpy()
        actions = np.asarray(found, np.float32)
        if actions.shape != (len(observation), sizes[1]) or not np.isfinite(actions).all():
            fits = actions.shape == (len(observation), sizes[1])
            what = "NaN or infinity" if fits else f"shape {actions.shape}"
            raise UserError(
                f"policy {spec}: it gives {what} for {len(observation)} observations of {sizes[0]} values, and "
                f"[{len(observation)}, {sizes[1]}] is needed. Pass the dataset and environment it belongs to."
            )
        unit = actions if env is None else unit_actions(actions, env.action_low, env.action_high)
        return np.clip(unit, -1.0, 1.0)

    act(np.zeros((2, sizes[0]), np.float32))
    return CallableTeacher(act)


def _callable(spec: str) -> Function:
    module, _, name = spec.partition(":")
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception as error:  # the user's module may fail in any way
        raise UserError(
            f"policy {spec}: {type(error).__name__}: {error}. Name a function of an importable module: module:function."
        ) from error
    if not callable(found):
        raise UserError(
            f"policy {spec}: '{name}' is {type(found).__name__}, no function. Name one that maps [B, S] to [B, A]."
        )
    function: Function = found
    return function


def load_onnx(spec: str) -> Function:
    """The function of an ONNX file."""
    content = read_limited(Path(spec), MAX_BYTES)
    try:
        graph = onnx_file.decode(content)
    except Exception as error:  # damaged bytes fail anywhere
        raise UserError(f"policy {spec}: it is no ONNX file that can be read ({error}). Export it again.") from error

    def run(observation: FloatArray) -> FloatArray:
        try:
            return onnx_file.run(graph, observation)
        except onnx_file.UnknownOperatorError as error:
            return _onnxruntime(spec, content, str(error))(observation)  # type: ignore[no-any-return]

    return run


def _onnxruntime(spec: str, content: bytes, operator: str) -> Function:
    try:
        import onnxruntime  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise UserError(
            f"policy {spec}: its operator '{operator}' needs ONNX Runtime. Install it with `pip install onnxruntime`."
        ) from error
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda observation: session.run(None, {name: observation})[0]


def _torchscript(spec: str) -> Function:
    content = read_limited(Path(spec), MAX_BYTES)
    try:
        module = torch.jit.load(io.BytesIO(content), map_location="cpu").eval()  # type: ignore[no-untyped-call]
    except Exception as error:
        raise UserError(f"policy {spec}: it is no TorchScript file that can be read ({_line(error)}).") from error
    return _module(module)


def load_torch_export(spec: str) -> Function:
    """The function of a ``torch.export`` file."""
    return _module(load_program(spec))


def load_program(spec: str) -> Any:
    """The module of a ``torch.export`` file, read without unpickling objects."""
    content = read_limited(Path(spec), MAX_BYTES)
    _check_program(spec, content)
    try:
        with _weights_only():  # torch.export would else fall back to executing pickles
            return torch.export.load(io.BytesIO(content)).module()
    except Exception as error:
        raise UserError(f"policy {spec}: it is no torch.export file that can be read ({_line(error)}).") from error


def _check_program(spec: str, content: bytes) -> None:
    """Refuses what ``torch.export.load`` would unpickle or load as machine code."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = archive.namelist()
            configs = [json.loads(archive.read(name)) for name in names if name.endswith(".json")]
    except (zipfile.BadZipFile, ValueError) as error:
        raise UserError(f"policy {spec}: it is no torch.export file that can be read ({_line(error)}).") from error
    payloads = [path for config in configs for path in _payloads(config)]
    strange = [path for path in payloads if not path.startswith(("weight_", "tensor_"))]
    strange += [name for name in names if not _PROGRAM_MEMBER.fullmatch(name)]
    if strange or len({*names}) < len(names):
        raise UserError(
            f"policy {spec}: it holds '{(strange or names)[0]}', more than a graph and tensors, so it was not loaded. "
            "Wrap it in a Python function and clone that: `o2o policy clone module:function`."
        )


def _payloads(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            if key == "path_name":
                yield str(item)
            else:
                yield from _payloads(item)
    elif isinstance(value, list):
        for item in value:
            yield from _payloads(item)


@contextmanager
def _weights_only() -> Iterator[None]:
    before = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]
        else:
            os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = before


def _module(module: Any) -> Function:
    def run(observation: FloatArray) -> Any:
        with torch.no_grad():
            return module(torch.from_numpy(observation))

    return run


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
