"""WSRL (Zhou et al. 2024, https://arxiv.org/abs/2412.07762): SAC from a pretrained start, without its data."""

from typing import ClassVar, Literal

from o2o_lightning.methods.actor_critic import GOES_ON
from o2o_lightning.methods.method import Source, Task
from o2o_lightning.methods.rlpd import RLPD


class WSRL(RLPD):
    """SAC on what it does itself, after a warm-up in which the policy of the checkpoint acts and nothing learns.

    Everything is handed over: policy, critics, targets, temperature, and Adam's moments of them.
    """

    name: ClassVar[str] = "wsrl"
    needs_critic: ClassVar[bool] = True
    carries_moments: ClassVar[tuple[str, ...]] = GOES_ON
    needs_source: ClassVar[bool] = True
    actor_lr: float = 1e-4
    temperature_lr: float = 1e-4
    replace: bool = True
    policy_value: Literal["mean", "least"] = "least"
    policy_every: int = 4
    entropy_backup: bool = False
    target_entropy: float = -1.0

    def build(self, task: Task, source: Source | None = None) -> None:
        super().build(task, source)
        if source is not None:
            source.load_scalar(self.log_alpha, "log_alpha")
