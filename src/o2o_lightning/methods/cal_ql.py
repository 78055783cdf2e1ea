"""Cal-QL (Nakamoto et al. 2023, https://arxiv.org/abs/2303.05479), offline and online."""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from o2o_lightning.methods.cql import CQL
from o2o_lightning.methods.method import Batch
from o2o_lightning.objectives.returns import calibration_returns


class CalQL(CQL):
    r"""CQL that pushes no policy action's value below the return seen from its state, :math:`\max\{Q(s, a), G(s)\}`.

    Args:
        calibrate: False leaves plain CQL, as CORL does online (D57).
        failure_reward: of a step without success in a sparse task; a failed episode's G is its sum for ever.
        failure_by: what fails an episode: ``all`` of its rewards (official) or the ``last`` one (CORL, D58).
    """

    name: ClassVar[str] = "cal_ql"
    needs: ClassVar[tuple[str, ...]] = ("return_to_go",)
    calibrate: bool = True
    failure_reward: float | None = None
    failure_by: Literal["all", "last"] = "all"

    def sampled_values(self, batch: Batch, actions: Tensor) -> Tensor:
        values = super().sampled_values(batch, actions)
        if not self.calibrate:
            return values
        uniform, policy = values[:, : self.samples], values[:, self.samples :]
        return torch.cat((uniform, torch.maximum(policy, batch["return_to_go"])), 1)

    def returns_to_go(self, reward: Tensor, terminated: Tensor, truncated: Tensor) -> Tensor:
        return calibration_returns(reward, terminated | truncated, self.discount, self.failure_reward, self.failure_by)
