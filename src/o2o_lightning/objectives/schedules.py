"""Schedules as functions of a clock, so that a resumed run is on the same point of the curve."""

import math


def cosine_decay(step: int, total: int) -> float:
    r"""Factor :math:`\frac12 (1 + \cos(\pi t/T))`, 1 at the start and 0 from ``total`` on."""
    return 0.5 * (1.0 + math.cos(math.pi * min(step / total, 1.0)))


def linear_decay(step: float, total: int) -> float:
    r"""Factor :math:`\max\{1 - t/T, 0\}`, 1 at the start and 0 from ``total`` on."""
    return max(1.0 - step / total, 0.0)


def cosine_restart(step: int, total: int) -> float:
    r"""Factor :math:`\frac12 (1 - \cos(\pi t/T))`: how a cosine that has come down to 0 climbs again."""
    return 0.5 * (1.0 - math.cos(math.pi * step / total))
