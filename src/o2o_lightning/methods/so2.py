"""SO2 (Zhang et al. 2023, https://arxiv.org/abs/2312.07685): values by a perturbed action, and many updates of them."""

from typing import ClassVar, Literal

from torch import Tensor

from o2o_lightning.methods.goes_on import GoesOn
from o2o_lightning.methods.method import Draws, Moment, Noise, Normal, Updates
from o2o_lightning.objectives.td3 import smoothed_action


class SO2(GoesOn):
    """SAC whose targets take all critics' least value at the policy's action beside which noise has been put.

    Args:
        perturbation, perturbation_clip: σ of that noise, and where it is clipped.
        values_first: updates of the critics alone, before the policy moves.
    """

    name: ClassVar[str] = "so2"
    layer_norm: bool = False
    policy_every: int = 1
    policy_value: Literal["mean", "least"] = "least"
    subset: int | None = None
    target_entropy: float = -1.0
    perturbation: float = 0.3
    perturbation_clip: float = 0.6
    values_first: int = 100

    def noise(self, shape: tuple[int, ...]) -> Draws:
        return {**super().noise(shape), "perturbation": Normal(shape)}

    def update(self, moment: Moment) -> Updates:
        yield from (
            item for item in super().update(moment) if moment.update >= self.values_first or item != self.policy_step
        )

    def valued_action(self, action: Tensor, noise: Noise) -> Tensor:
        return smoothed_action(action, noise["perturbation"], self.perturbation, self.perturbation_clip)
