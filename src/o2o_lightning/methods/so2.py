"""SO2 (Zhang et al. 2023, https://arxiv.org/abs/2312.07685): values by a perturbed action, and many updates of them."""

from typing import ClassVar, Literal

from torch import Tensor

from o2o_lightning.methods.actor_critic import GOES_ON
from o2o_lightning.methods.method import Batch, Draws, Moment, Noise, Normal, Source, Task, Updates
from o2o_lightning.methods.rlpd import RLPD
from o2o_lightning.nn.squashed_gaussian import SquashedGaussian
from o2o_lightning.objectives.bellman import td_target
from o2o_lightning.objectives.td3 import smoothed_action


class SO2(RLPD):
    """SAC whose targets take all critics' least value at the policy's action beside which noise has been put.

    Args:
        perturbation, perturbation_clip: σ of that noise, and where it is clipped.
        values_first: updates of the critics alone, before the policy moves.
    """

    name: ClassVar[str] = "so2"
    needs_critic: ClassVar[bool] = True
    needs_source: ClassVar[bool] = True
    carries_moments: ClassVar[tuple[str, ...]] = GOES_ON
    layer_norm: bool = False
    policy_every: int = 1
    policy_value: Literal["mean", "least"] = "least"
    subset: int | None = None
    target_entropy: float = -1.0
    perturbation: float = 0.3
    perturbation_clip: float = 0.6
    values_first: int = 100

    def build(self, task: Task, source: Source | None = None) -> None:
        super().build(task, source)
        if source is not None:
            source.load_scalar(self.log_alpha, "log_alpha")

    def noise(self, shape: tuple[int, ...]) -> Draws:
        return {**super().noise(shape), "perturbation": Normal(shape)}

    def update(self, moment: Moment) -> Updates:
        yield from (
            item for item in super().update(moment) if moment.update >= self.values_first or item != self.policy_step
        )

    def bootstrap(self, batch: Batch, policy: SquashedGaussian, noise: Noise) -> Tensor:
        successor = batch["next", "observation"]
        action, log_prob = policy.sample(noise["target"])
        action = smoothed_action(action, noise["perturbation"], self.perturbation, self.perturbation_clip)
        value = self.bound(self.target_critic(successor, action), noise)
        if self.entropy_backup:
            value = value - self.price(successor, policy, noise["target"], log_prob)
        return td_target(batch["reward"], batch["next", "terminated"], value, self.discount)
