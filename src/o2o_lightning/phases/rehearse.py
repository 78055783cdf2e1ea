"""A rehearsal: what a rule makes of a policy on the dataset alone, before anything is risked."""

from typing import Any, ClassVar

from o2o_lightning.checkpoint.handover import PHASES
from o2o_lightning.phases.base import Phase


class Rehearse(Phase):
    """The updates of any rule, an online one included, on the dataset alone, from a checkpoint of any phase.

    Nothing is evaluated and nothing is handed on: ``o2o diagnose`` asks what has come of it.
    """

    phase: ClassVar[str] = "rehearse"
    accepts: ClassVar[tuple[str, ...]] = PHASES

    def configure_callbacks(self) -> list[Any]:
        return []
