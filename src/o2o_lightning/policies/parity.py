"""Is the imported policy the one that the user had?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from o2o_lightning.nn.actor import FloatArray
from o2o_lightning.nn.squashed_gaussian import ACTION_LIMIT

TOLERANCE = 3e-5  # two orders of float32 sums, in states far outside the data, where activations are large


@dataclass(frozen=True)
class Parity:
    """Two policies' deterministic actions in the same states, in ``[-1, 1]``.

    Attributes:
        states: how many.
        largest, rmse: distance of the actions.
        clipped: whether the only difference is ours of clipping squashed actions at ±(1 − 1e-4).
        same: no difference beyond rounding and that clip.
        dimension, state: where the largest difference is.
    """

    states: int
    largest: float
    rmse: float
    clipped: bool
    same: bool
    dimension: int
    state: int

    def verdict(self) -> str:
        """One line."""
        if not self.same:
            return (
                f"differs: actions are up to {self.largest:.2g} apart, RMSE {self.rmse:.2g} over {self.states:,} "
                f"states, most in dimension {self.dimension} of state {self.state}"
            )
        clip = f", all of it from clipping actions at ±{ACTION_LIMIT:g}" if self.clipped else ""
        return f"same policy: actions are at most {self.largest:.1g} apart over {self.states:,} states{clip}"


def compare(actions: FloatArray, source: FloatArray) -> Parity:
    """Parity of actions ``[N, A]`` with the source's."""
    apart = np.abs(actions - source)
    beyond = np.abs(actions - np.clip(source, -ACTION_LIMIT, ACTION_LIMIT))
    state, dimension = np.unravel_index(int(apart.argmax()), apart.shape)
    plain, clipped = bool(apart.max() <= TOLERANCE), bool(np.minimum(apart, beyond).max() <= TOLERANCE)
    return Parity(
        states=len(actions),
        largest=float(apart.max()),
        rmse=float(np.sqrt(np.square(apart).mean())),
        clipped=clipped and not plain,
        same=plain or clipped,
        dimension=int(dimension),
        state=int(state),
    )
