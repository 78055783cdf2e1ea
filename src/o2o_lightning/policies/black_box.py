"""Policies that are only functions: they are distilled by the clone phase.

A function is the user's own code, and TorchScript and ``torch.export`` files are programs: they are run only when
named as such, never by detection.
"""

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any

import numpy as np
import torch

from o2o_lightning.envs.make import EnvSpec, unit_actions
from o2o_lightning.errors import UserError, reason
from o2o_lightning.launch import search_here
from o2o_lightning.limits import bounded
from o2o_lightning.nn.actor import FloatArray
from o2o_lightning.policies.history import Teacher
from o2o_lightning.policies.program import load_program
from o2o_lightning.policies.source import BadPolicy, Taken, readable, reading
from o2o_lightning.policies.torchscript import load_torchscript

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
        with _limited(spec, format):
            function = FORMATS[format](spec, sizes[1])

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

    tried = np.zeros((2, sizes[0]), np.float32)
    with _limited(spec, format), reading(spec):
        if not np.array_equal(act(tried), act(tried)) and format != "callable":
            raise BadPolicy("it draws its actions at random. Export its deterministic action.")
    return Teacher(act)


def _limited(spec: str, format: str) -> AbstractContextManager[None]:
    """What a file may take; a function is the user's own."""
    return nullcontext() if format == "callable" else bounded(f"policy {spec}")


def _callable(spec: str, actions: int) -> Function:
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


def onnx_tools() -> ModuleType:
    """What reads and writes ONNX, where its packages are installed."""
    try:
        from o2o_lightning.policies import onnx_file
    except ImportError as error:
        raise UserError(
            f"ONNX: it is read, run and checked by the packages onnx and onnxruntime ({reason(error)}). Install them: "
            "pip install 'o2o-lightning[onnx]'."
        ) from error
    return onnx_file


def _module(module: Any) -> Function:
    def run(observation: FloatArray) -> Any:
        with torch.no_grad():
            return module(torch.from_numpy(observation))

    return run


# by name: from what the user gave, and the number of actions that are wanted
FORMATS: dict[str, Callable[[str, int], Function]] = {
    "callable": _callable,
    "onnx": lambda spec, actions: onnx_tools().load_onnx(spec, actions),
    "torchscript": lambda spec, actions: _module(load_torchscript(spec)),
    "torch_export": lambda spec, actions: _module(load_program(spec)),
}
_CLONED = "distilled: the --family that is asked for"
TAKES = (
    Taken("any", "a function module:function of float32 [B, S]", _CLONED),
    Taken("any", "an ONNX model (extra `onnx`)", _CLONED),
    *(Taken("PyTorch", f"a program, --format {name}", _CLONED) for name in ("torchscript", "torch_export")),
)
