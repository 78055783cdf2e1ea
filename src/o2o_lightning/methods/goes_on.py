"""What SAC's kin share that go on with all that a checkpoint has."""

from typing import ClassVar

from o2o_lightning.methods.actor_critic import GOES_ON
from o2o_lightning.methods.method import Source, Task
from o2o_lightning.methods.rlpd import RLPD


class GoesOn(RLPD):
    """Everything is handed over: policy, critics, targets, temperature, and Adam's moments of them."""

    needs_critic: ClassVar[bool] = True
    needs_source: ClassVar[bool] = True
    carries_moments: ClassVar[tuple[str, ...]] = GOES_ON

    def build(self, task: Task, source: Source | None = None) -> None:
        super().build(task, source)
        if source is not None:
            source.load_scalar(self.log_alpha, "log_alpha")
