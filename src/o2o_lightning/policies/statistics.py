"""Observation statistics of a policy: JSON, NPZ, or Stable-Baselines3's VecNormalize pickle, never executed."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from o2o_lightning.errors import UserError
from o2o_lightning.nn.normalizer import Normalizer
from o2o_lightning.policies.source import Array
from o2o_lightning.policies.tensors import DAMAGED

MAX_BYTES = 2**26
# Their classes become inert records: nothing of these packages is imported, and none of it runs.
INERT_PACKAGES = ("stable_baselines3", "sb3_contrib", "gym", "gymnasium", "numpy.random", "collections", "copyreg")
FORM = "JSON or NPZ with `mean`, and `std` or `var`, each one value an observation (and perhaps `eps`, `clip`)"


class NotNormalizingError(UserError):
    """A VecNormalize that leaves observations as they are."""


def read_statistics(path: str | Path) -> Normalizer:
    """The normaliser that a file of statistics describes.

    Raises:
        UserError: unreadable, of another form, or a pickle that would do more than hold VecNormalize's numbers.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"normalizer {path}: there is no such file. Pass {FORM}, or VecNormalize's pickle.")
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"normalizer {path}: it is larger than {MAX_BYTES >> 20} MB. Pass a file of statistics.")
    return _normalizer(path, _read(path, path.read_bytes()))


def _read(path: Path, content: bytes) -> Any:
    if content[:1] in (b"{", b" ", b"\n"):
        try:
            return json.loads(content)
        except ValueError as error:
            raise UserError(f"normalizer {path}: it is not JSON ({error}). Pass {FORM}.") from error
    if content[:2] == b"PK":
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as file:
                return {key: file[key] for key in file.files}
        except (*DAMAGED, KeyError) as error:
            raise UserError(f"normalizer {path}: it cannot be read ({error}). Pass {FORM}.") from error
    if content[:1] == b"\x80":
        return _vecnormalize(path, content)
    raise UserError(f"normalizer {path}: neither JSON, NPZ nor a pickle. Pass {FORM}, or VecNormalize's pickle.")


def _normalizer(path: Path, found: Any) -> Normalizer:
    try:
        mean = np.asarray(found["mean"], np.float64)
        eps = float(found.get("eps", found.get("epsilon", 0.0)))
        if "std" in found:
            std = np.asarray(found["std"], np.float64)
        else:  # Stable-Baselines3 adds epsilon to the variance
            std, eps = np.sqrt(np.asarray(found["var"], np.float64) + eps), 0.0
        clip = found.get("clip", found.get("clip_obs"))
        clip = None if clip is None else float(clip)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"normalizer {path}: {type(error).__name__} {error}. Pass {FORM}.") from error
    if mean.ndim != 1 or mean.shape != std.shape or not (np.isfinite(mean).all() and (std > 0).all()):
        raise UserError(
            f"normalizer {path}: mean {mean.shape} and deviation {std.shape} must be vectors of one length, finite and "
            f"positive. Pass {FORM}."
        )
    return Normalizer(torch.from_numpy(mean).float(), torch.from_numpy(std).float(), eps, clip)


# ---- VecNormalize's pickle ---------------------------------------------------------------------------------------


def _vecnormalize(path: Path, content: bytes) -> dict[str, Any]:
    """Mean, variance, epsilon and clip of a VecNormalize pickle, read by a machine that can call nothing."""
    try:
        state = _Reader(io.BytesIO(content)).load().state
        if state.get("norm_obs") is False:
            raise NotNormalizingError(f"normalizer {path}: it normalises no observations. Leave --normalizer out.")
        statistics = state["obs_rms"].state
        arrays = {name: _array(statistics[name]) for name in ("mean", "var")}
        return arrays | {"eps": _number(state["epsilon"]), "clip": _number(state["clip_obs"])}
    except _RefusedError as error:
        raise UserError(
            f"normalizer {path}: its pickle would use {error}, so it was not read, and nothing of it ran. Pass {FORM}."
        ) from error
    except UserError:
        raise
    except Exception as error:  # damaged bytes fail anywhere in the unpickler
        raise UserError(
            f"normalizer {path}: it is no VecNormalize pickle ({type(error).__name__}: {error}). Pass {FORM}."
        ) from error


class _RefusedError(Exception):
    """A pickle names something that is neither NumPy's numbers nor an inert record."""


class _Record:
    """Stands for an object of a class that is not imported: keeps what the pickle says of it, and does nothing."""

    def __new__(cls, *arguments: Any, **keywords: Any) -> _Record:
        record = super().__new__(cls)
        record.arguments, record.state = arguments, {}
        return record

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        self.arguments: tuple[Any, ...]
        self.state: Any

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        return

    def append(self, value: Any) -> None:
        """An item of a list-like object."""

    def extend(self, values: Any) -> None:
        """Items of a list-like object."""


class _Array(_Record):
    """``numpy.core.multiarray._reconstruct(…)``; its state is (version, shape, dtype, Fortran order, bytes)."""


class _Buffer(_Record):
    """``numpy.core.numeric._frombuffer(bytes, dtype, shape, order)``, what protocol 5 writes."""


class _Scalar(_Record):
    """``numpy.core.multiarray.scalar(dtype, bytes)``."""


class _Dtype(_Record):
    """``numpy.dtype('f8', …)``; its state begins (version, byte order, …)."""


class _Bytes(_Record):
    """``_codecs.encode(text, 'latin1')``, how protocol 2 writes bytes."""


_NUMBERS = {"_reconstruct": _Array, "_frombuffer": _Buffer, "scalar": _Scalar, "dtype": _Dtype}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        package = module.replace("numpy._core", "numpy.core")
        if package in ("numpy", "numpy.core.multiarray", "numpy.core.numeric") and name in _NUMBERS:
            return _NUMBERS[name]
        if (module, name) == ("_codecs", "encode"):
            return _Bytes
        inert = any(module == known or module.startswith(known + ".") for known in INERT_PACKAGES)
        if inert or (module, name) == ("numpy", "ndarray"):
            return _Record
        raise _RefusedError(f"'{module}.{name}'")

    def persistent_load(self, pid: Any) -> Any:
        raise _RefusedError("an object outside of it")


def _array(value: Any) -> Array:
    if isinstance(value, _Array):
        _, shape, dtype, fortran, data = value.state
    elif isinstance(value, _Buffer):
        data, dtype, shape, order = value.arguments
        fortran = order == "F"
    else:
        raise ValueError("an array is missing")
    if fortran and len(shape) > 1:
        raise ValueError("an array of unexpected order")
    array: Array = np.frombuffer(_raw(data), _dtype(dtype)).reshape(shape).astype(np.float64)
    return array


def _number(value: Any) -> float:
    if isinstance(value, _Scalar):
        dtype, data = value.arguments
        return float(np.frombuffer(_raw(data), _dtype(dtype))[0])
    return float(value)


def _dtype(value: Any) -> str:
    name, order = value.arguments[0], value.state[1] if value.state else "<"
    if name not in ("f4", "f8", "i4", "i8"):
        raise ValueError(f"an array of '{name}'")
    return f"{order if order in '<>' else '<'}{name}"


def _raw(value: Any) -> bytes:
    return value.arguments[0].encode("latin1") if isinstance(value, _Bytes) else bytes(value)
