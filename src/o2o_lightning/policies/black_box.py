"""Policies that are only functions: they are distilled by the clone phase.

A function is the user's own code, and TorchScript and ``torch.export`` files are programs: they are run only when
named as such, never by detection.
"""

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch

from o2o_lightning.data.units import both_fit, outside
from o2o_lightning.envs.make import EnvSpec, unit_actions
from o2o_lightning.errors import UserError, reason
from o2o_lightning.launch import note_once, search_here
from o2o_lightning.limits import bounded
from o2o_lightning.nn.actor import FloatArray
from o2o_lightning.policies.history import Teacher
from o2o_lightning.policies.program import load_program
from o2o_lightning.policies.source import BadPolicy, Taken, readable, reading
from o2o_lightning.policies.torchscript import load_torchscript

Units = Literal["auto", "native", "unit"]
ASK = "Pass --actions unit if they are scaled to [-1, 1], --actions native if they are not."
Function = Callable[[FloatArray], Any]


def black_box(
    spec: str,
    format: str,
    sizes: tuple[int, int],
    env: EnvSpec | None,
    units: Units = "auto",
    states: FloatArray | None = None,
) -> Teacher:
    """The function that ``spec`` names, as a teacher.

    Args:
        spec, format: where it is, and a name of :data:`FORMATS`.
        sizes: the observation and action widths that it must have.
        env: whose bounds make ``[-1, 1]`` of its actions; without it they are there already.
        units: ``native``, the environment's own, or ``unit``; ``auto``: native, unless a file's actions fit both.
        states: observations ``[N, S]`` that it is tried on; zeros where there are none.

    Raises:
        UserError: it cannot be loaded, does not map ``[B, S]`` to ``[B, A]``, or the units of its actions must be told.
    """
    with reading(spec):
        if format not in FORMATS:
            raise BadPolicy(f"it is a {format} file, no black box. Import it first: `o2o policy import {spec}`.")
        with _limited(spec, format):
            function = FORMATS[format](spec, sizes[1])

    @reading(spec)
    def given(observation: FloatArray) -> FloatArray:
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
        return actions

    def act(observation: FloatArray) -> FloatArray:
        actions = given(observation)
        if env is not None and units != "unit":
            actions = unit_actions(actions, env.action_low, env.action_high)
        return np.clip(actions, -1.0, 1.0)

    tried = np.zeros((2, sizes[0]), np.float32) if states is None else states
    with _limited(spec, format), reading(spec):
        actions = given(tried)
        if not np.array_equal(actions, given(tried)) and format != "callable":
            raise BadPolicy("it draws its actions at random. Export its deterministic action.")
        if env is not None and units == "auto" and format != "callable" and states is not None:
            _check_units(actions, env)
    return Teacher(act)


def _check_units(actions: FloatArray, env: EnvSpec) -> None:
    """Asks for the units of a file's actions where they fit two readings, as those of a dataset are asked for."""
    lowest, highest = actions.min(0), actions.max(0)
    doubt = both_fit(lowest, highest, env)
    if outside(lowest, highest, env.action_low, env.action_high) and not outside(lowest, highest, -1.0, 1.0):
        bounds = f"[{env.action_low.min():g}, {env.action_high.max():g}]"
        doubt = f"its actions leave the bounds of {env.env_id}, {bounds}, but not [-1, 1]: normalised actions?", True
    if doubt is not None and doubt[1]:
        raise BadPolicy(f"{doubt[0]} {ASK}")
    if doubt is not None:
        note_once(f"policy: {doubt[0]} Pass --actions unit if they are scaled to [-1, 1].")


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
    Taken("any", "any other ONNX model (extra `onnx`)", _CLONED),
    *(Taken("PyTorch", f"a program, --format {name}", _CLONED) for name in ("torchscript", "torch_export")),
)
