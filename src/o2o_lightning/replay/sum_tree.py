"""Numbers that can be drawn in proportion to their weights, and weights that can change."""

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


class SumTree:
    """Weights of the numbers 0 … ``count`` − 1, all 0 at first, and sums of them, in double precision.

    Single precision would lose the lighter of a million rows whose weights span six orders of magnitude.
    """

    def __init__(self, count: int) -> None:
        self.leaves = 1 << max(count - 1, 0).bit_length()
        self._sums = np.zeros(2 * self.leaves)  # node n has the children 2n and 2n + 1, the root is 1

    @property
    def total(self) -> float:
        return float(self._sums[1])

    def __getitem__(self, numbers: IntArray | slice) -> FloatArray:
        weights: FloatArray = self._sums[self.leaves :][numbers]
        return weights

    def set(self, numbers: IntArray, weights: FloatArray | float) -> None:
        """Gives ``numbers`` ``[M]`` their ``weights``."""
        nodes = numbers + self.leaves
        self._sums[nodes] = weights
        while len(nodes) and nodes[0] > 1:  # all are on one level
            nodes = np.unique(nodes >> 1) if len(nodes) > 4096 else nodes >> 1
            self._sums[nodes] = self._sums[2 * nodes] + self._sums[2 * nodes + 1]

    def find(self, mass: FloatArray) -> IntArray:
        """The numbers ``[M]`` up to which the weights first sum to more than ``mass`` ``[M]``."""
        nodes, mass = np.ones(len(mass), np.int64), mass.copy()
        while nodes[0] < self.leaves:
            left = self._sums[2 * nodes]
            right = mass >= left
            mass -= np.where(right, left, 0.0)
            nodes = 2 * nodes + right
        return nodes - self.leaves
