"""When two programs of one policy are the same: apart by no more than float32 sums round."""

import copy
import math
from typing import Any

import numpy as np
import torch

from o2o_lightning.nn.actor import Actor, FloatArray, Policy
from o2o_lightning.nn.normalizer import Normalizer

ROUNDINGS = 16.0  # for other orders of summation, fused products, another library's tanh


def tolerance(policy: Policy, single: FloatArray, double: FloatArray) -> float:
    """How far apart two float32 programs of ``policy`` may be, at import and at export.

    A multiple of what float32 was measured to round, and at least of √width ulp, the least that sums over its widest
    layer can be expected to: unnormalised observations of 500 round to more than normalised ones of 1.

    Args:
        policy: whose layers count.
        single, double: its actions ``[…, A]`` by float32 and by float64 arithmetic, in units of half their range.
    """
    width = max(part.shape[-1] for part in policy.parameters() if part.ndim)
    measured = float(np.abs(single - double).max())
    return ROUNDINGS * max(measured, float(np.finfo(np.float32).eps) * math.sqrt(width))


def by_float64(actor: Actor, normalizer: Normalizer, observation: FloatArray) -> FloatArray:
    """``actor``'s deterministic actions ``[B, A]`` at raw observations ``[B, S]``, rounded only at the end."""
    exact = copy.deepcopy(actor).double()
    with torch.no_grad():
        return exact.mode(normalizer(torch.from_numpy(observation).double())).float().numpy()


def apart(actions: FloatArray, source: FloatArray, rounded: float) -> dict[str, Any]:
    """How far two policies' deterministic actions ``[N, A]`` in the same states are apart.

    ``same``: by no more than is ``rounded``; ``dimension`` and ``state``: where they are furthest apart.
    """
    difference = np.abs(actions - source)
    state, dimension = np.unravel_index(int(difference.argmax()), difference.shape)
    largest, rmse = float(difference.max()), float(np.sqrt(np.square(difference).mean()))
    return {
        "states": len(actions), "largest": largest, "rmse": rmse, "same": largest <= rounded,
        "dimension": int(dimension), "state": int(state),
    }  # fmt: skip
