"""WSRL (Zhou et al. 2024, https://arxiv.org/abs/2412.07762): SAC from a pretrained start, without its data."""

from typing import ClassVar, Literal

from o2o_lightning.methods.goes_on import GoesOn


class WSRL(GoesOn):
    """SAC on what it does itself, after a warm-up in which the policy of the checkpoint acts and nothing learns."""

    name: ClassVar[str] = "wsrl"
    actor_lr: float = 1e-4
    temperature_lr: float = 1e-4
    replace: bool = True
    policy_value: Literal["mean", "least"] = "least"
    policy_every: int = 4
    entropy_backup: bool = False
    target_entropy: float = -1.0
