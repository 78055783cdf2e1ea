"""Policy re-evaluation: a fresh, optimistic critic of the offline policy, by the online evaluation rule."""

from typing import ClassVar

from o2o_lightning.checkpoint.handover import POLICIES
from o2o_lightning.phases.converging import Converging


class Reevaluate(Converging):
    """Fits a critic, from random weights, to the frozen policy π_off; hands on both."""

    phase: ClassVar[str] = "reevaluate"
    accepts: ClassVar[tuple[str, ...]] = POLICIES
    evaluates: ClassVar[bool] = False
