"""What an environment returns, held against what it promised: the guilty one is named before anything is learned.

Learners hold float32, so a number that float32 does not reach counts as infinite.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from o2o_lightning.errors import Failure, UserError

FloatArray = NDArray[np.float32]
LARGEST = float(np.finfo(np.float32).max)
GOES_ON = "Check the simulator; `o2o resume RUN_DIR` goes on with a run from its last checkpoint."


def observed(observation: FloatArray, width: int, where: str) -> FloatArray:
    """A flat observation of ``width`` finite values.

    Raises:
        UserError: another width; a :class:`Failure` for NaN or infinity. ``where`` is the environment and the step.
    """
    if observation.shape != (width,):
        raise UserError(
            f"{where}: its observation has {observation.size} values, its space {width}. Correct what it returns."
        )
    if not np.isfinite(observation).all():
        place = int(np.argmin(np.isfinite(observation)))
        raise Failure(f"{where}: value {place} of its observation is {_named(float(observation[place]))}. {GOES_ON}")
    return observation


def rewarded(reward: Any, where: str) -> float:
    """A reward as a finite number, also of an array with one element; raises as :func:`observed`."""
    value = _number(reward, "reward", where)
    if not abs(value) <= LARGEST:
        raise Failure(f"{where}: its reward is {_named(value)}. {GOES_ON}")
    return value


def flagged(flag: Any, name: str, where: str) -> bool:
    """``terminated`` or ``truncated`` as a bool; raises as :func:`observed`."""
    return flag if isinstance(flag, bool) else bool(_number(flag, name, where))


def _number(value: Any, name: str, where: str) -> float:
    if type(value) is float:
        return value
    array = np.asarray(value) if not isinstance(value, list | tuple) else np.asarray(value, object)
    if array.size != 1 or array.dtype.kind not in "biuf":
        said = f"has shape {array.shape}" if array.size != 1 else f"is {value!r}"
        raise UserError(f"{where}: its {name} {said}, and a number is needed. Correct what it returns.")
    return float(array.item())


def _named(value: float) -> str:
    return "NaN" if np.isnan(value) else "infinite" if np.isinf(value) else f"{value:g}, beyond float32"


@contextmanager
def staying() -> Iterator[None]:
    """Makes an error of what a simulator does to end the process, as some do where they miss a licence or a display."""
    try:
        yield
    except (SystemExit, GeneratorExit) as error:
        said = f": {error}" if str(error) else ""
        raise RuntimeError(f"it would end the process ({type(error).__name__}{said})") from error
