"""Interquartile means and bootstrap intervals over seeds.

After Agarwal, Schwarzer, Castro, Courville and Bellemare, "Deep RL at the Edge of the Statistical Precipice", 2021.
Their package rliable 1.2 brings 300 MB (pandas, SciPy, statsmodels) and can't be imported beside pandas 3; what a
report needs of it is below.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Strata = Sequence[Array]
LEVEL, RESAMPLES = 95.0, 2000


def iqm(strata: Strata) -> Array:
    """Mean ``[K]`` of the middle half of all runs, whatever dataset they are of; of fewer than four, of all."""
    values = np.sort(np.concatenate(strata), axis=0)
    cut = len(values) // 4
    return np.asarray(values[cut : len(values) - cut].mean(axis=0))


def mean(strata: Strata) -> Array:
    """Mean ``[K]`` over the datasets of the means over their runs."""
    return np.asarray(np.mean([values.mean(axis=0) for values in strata], axis=0))


def interval(statistic: Callable[[Strata], Array], strata: Strata) -> Array:
    """``statistic`` and its 95 % percentile bootstrap interval, ``[3, K]``: value, low, high.

    Runs are drawn with replacement within their own dataset (stratified), always with the same draws; NaN where no
    dataset has two of them.

    Args:
        statistic: :func:`iqm` or :func:`mean`.
        strata: for each dataset the values ``[runs, K]``; columns are resampled together.
    """
    value = statistic(strata)
    if all(len(values) < 2 for values in strata):
        return np.stack([value, np.full_like(value, np.nan), np.full_like(value, np.nan)])
    generator = np.random.default_rng(0)
    drawn = [
        statistic([values[generator.integers(len(values), size=len(values))] for values in strata])
        for _ in range(RESAMPLES)
    ]
    tail = (100 - LEVEL) / 2
    return np.stack([value, *np.percentile(drawn, (tail, 100 - tail), axis=0)])
