"""Observation statistics of a policy: JSON, NPZ, or Stable-Baselines3's VecNormalize pickle, never executed."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from o2o_lightning.errors import UserError
from o2o_lightning.limits import bounded, read_json
from o2o_lightning.nn.normalizer import Normalizer
from o2o_lightning.policies.npz import read_npz
from o2o_lightning.policies.source import Array, BadPolicy, read_limited, readable, reading

MAX_BYTES = 2**26
# Their classes become inert records: nothing of these packages is imported, and none of it runs.
INERT_PACKAGES = ("stable_baselines3", "sb3_contrib", "gym", "gymnasium", "numpy.random", "collections", "copyreg")
FORM = "JSON or NPZ with `mean`, and `std` or `var`, each one value an observation (and perhaps `eps`, `clip`)"


class NotNormalizingError(UserError):
    """A VecNormalize that leaves observations as they are."""


def read_statistics(
    path: str | Path, layout: Sequence[str] = (), widths: Mapping[str, int] = MappingProxyType({})
) -> tuple[Normalizer, list[str]]:
    """The normaliser that a file of statistics describes, and the parts of a dictionary that it leaves as they are.

    The statistics of a dictionary are joined in the order ``layout``; a part without any has one of the ``widths``.

    Raises:
        UserError: unreadable, of another form, or a pickle that would do more than hold VecNormalize's numbers.
    """
    path = Path(path)
    with reading(path, "normalizer"), bounded(f"normalizer {path}"):  # a pickle's memo has the size that it says
        found, left = _read(path, read_limited(path, MAX_BYTES), layout, widths)
        return _normalizer(found), left


def _read(path: Path, content: bytes, layout: Sequence[str], widths: Mapping[str, int]) -> tuple[Any, list[str]]:
    if content[:1] in (b"{", b" ", b"\n"):
        with readable("it is not JSON", f"Pass {FORM}."):
            return read_json(content), []
    if content[:2] == b"PK":
        return read_npz(content), []
    if content[:1] == b"\x80":
        with readable("it is no VecNormalize pickle", f"Pass {FORM}."):
            return _vecnormalize(path, content, layout, widths)
    raise BadPolicy(f"neither JSON, NPZ nor a pickle. Pass {FORM}, or VecNormalize's pickle.")


def _normalizer(found: Any) -> Normalizer:
    with readable("it lacks what is needed, or has it in another form", f"Pass {FORM}."):
        mean = np.asarray(found["mean"], np.float64)
        eps = float(found.get("eps", found.get("epsilon", 0.0)))
        if "std" in found:
            std = np.asarray(found["std"], np.float64)
        else:  # Stable-Baselines3 adds epsilon to the variance
            std, eps = np.sqrt(np.asarray(found["var"], np.float64) + eps), 0.0
        clip = found.get("clip", found.get("clip_obs"))
        clip = None if clip is None else float(clip)
    if mean.ndim != 1 or mean.shape != std.shape or not (np.isfinite(mean).all() and (std > 0).all()):
        raise BadPolicy(
            f"mean {mean.shape} and deviation {std.shape} must be vectors of one length, finite and positive. "
            f"Pass {FORM}."
        )
    return Normalizer(torch.from_numpy(mean).float(), torch.from_numpy(std).float(), eps, clip)


# ---- VecNormalize's pickle ---------------------------------------------------------------------------------------

# What NumPy's functions hold in a pickle. _reconstruct: a state (version, shape, dtype, Fortran order, bytes).
# _frombuffer, of protocol 5: (bytes, dtype, shape, order). scalar: (dtype, bytes). dtype: ('f8', …), and a state
# (version, byte order, …).
_NUMBERS = ("_reconstruct", "_frombuffer", "scalar", "dtype")


def _vecnormalize(
    path: Path, content: bytes, layout: Sequence[str], widths: Mapping[str, int]
) -> tuple[dict[str, Any], list[str]]:
    """Mean, variance, epsilon and clip of a VecNormalize pickle, read by a machine that can call nothing."""
    state = _Reader(io.BytesIO(content)).load().state
    if state.get("norm_obs") is False:
        raise NotNormalizingError(f"normalizer {path}: it normalises no observations. Leave --normalizer out.")
    statistics, left = state["obs_rms"], list[str]()
    clip, epsilon = _number(state["clip_obs"]), _number(state["epsilon"])
    if isinstance(statistics, dict):
        found, left = _joined(statistics, layout, widths, epsilon)
    else:
        found = _moments(statistics)
    return found | {"eps": epsilon, "clip": clip}, left


def _moments(statistics: Any) -> dict[str, Array]:
    return {name: _array(statistics.state[name]).ravel() for name in ("mean", "var")}


def _joined(
    statistics: dict[str, Any], layout: Sequence[str], widths: Mapping[str, int], epsilon: float
) -> tuple[dict[str, Array], list[str]]:
    """Mean and variance of a dictionary's parts, one after the other as the policy takes them, and those without."""
    names = ", ".join(map(str, statistics))
    if not layout:
        raise BadPolicy(
            f"it normalises a dictionary of observations ({names}), and the policy's file does not tell its order. "
            "Pass --layout, the parts in the policy's order."
        )
    left = [name for name in layout if name not in statistics]
    if unknown := [name for name in left if name not in widths]:
        raise BadPolicy(
            f"it normalises {names}, and not {unknown[0]}, whose width the policy's file does not tell. Pass {FORM}."
        )
    parts = [
        {"mean": np.zeros(widths[name]), "var": np.full(widths[name], 1.0 - epsilon)}  # σ = 1 with epsilon
        if name in left
        else _moments(statistics[name])
        for name in layout
    ]
    return {key: np.concatenate([part[key] for part in parts]) for key in ("mean", "var")}, left


class _Record:
    """Stands for an object of a class that is not imported: keeps what the pickle says of it, and does nothing.

    ``function`` is the one of NumPy, or ``_codecs.encode`` of protocol 2's bytes, that the pickle would have called.
    """

    function: str
    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: Any, function: str = "", **keywords: Any) -> _Record:
        record = super().__new__(cls)
        record.function, record.arguments, record.state = function, arguments, {}
        return record

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        return

    def append(self, value: Any) -> None:
        """An item of a list-like object."""

    def extend(self, values: Any) -> None:
        """Items of a list-like object."""


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        package = module.replace("numpy._core", "numpy.core")
        numbers = package in ("numpy", "numpy.core.multiarray", "numpy.core.numeric") and name in _NUMBERS
        if numbers or (module, name) == ("_codecs", "encode"):
            return partial(_Record, function=name)
        inert = any(module == known or module.startswith(known + ".") for known in INERT_PACKAGES)
        if (module, name) in (("builtins", "set"), ("__builtin__", "set")):  # of keys to normalise, in older files
            return _Record
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if inert or (module, name) == ("numpy", "ndarray"):
            return _Record
        raise _refused(f"'{module}.{name}'")

    def persistent_load(self, pid: Any) -> Any:
        raise _refused("an object outside of it")


def _refused(what: str) -> BadPolicy:
    return BadPolicy(f"its pickle would use {what}, so it was not read, and nothing of it ran. Pass {FORM}.")


def _function(value: Any) -> str:
    return value.function if isinstance(value, _Record) else ""


def _array(value: Any) -> Array:
    if _function(value) == "_reconstruct":
        _, shape, dtype, fortran, data = value.state
    elif _function(value) == "_frombuffer":
        data, dtype, shape, order = value.arguments
        fortran = order == "F"
    else:
        raise ValueError("an array is missing")
    if fortran and len(shape) > 1:
        raise ValueError("an array of unexpected order")
    array: Array = np.frombuffer(_raw(data), _dtype(dtype)).reshape(shape).astype(np.float64)
    return array


def _number(value: Any) -> float:
    if _function(value) == "scalar":
        dtype, data = value.arguments
        return float(np.frombuffer(_raw(data), _dtype(dtype))[0])
    return float(value)


def _dtype(value: Any) -> str:
    name, order = value.arguments[0], value.state[1] if value.state else "<"
    if name not in ("f4", "f8", "i4", "i8"):
        raise ValueError(f"an array of '{name}'")
    return f"{order if order in '<>' else '<'}{name}"


def _raw(value: Any) -> bytes:
    return value.arguments[0].encode("latin1") if _function(value) == "encode" else bytes(value)
