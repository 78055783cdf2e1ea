"""TD3+BC (Fujimoto & Gu 2021, https://arxiv.org/abs/2106.06860)."""

from typing import ClassVar

from torch import Tensor

from o2o_lightning.methods.method import Batch, Loss
from o2o_lightning.methods.td3 import TD3
from o2o_lightning.objectives.td3 import td3_bc_policy_loss


class TD3BC(TD3):
    """TD3 whose policy also imitates the data.

    Args:
        bc_q_weight: α of the policy loss, larger = less imitation.
    """

    name: ClassVar[str] = "td3_bc"
    pays_back: ClassVar[int | None] = 20_000
    bc_q_weight: float = 2.5

    def policy_loss(self, q: Tensor, action: Tensor, batch: Batch) -> Loss:
        loss = td3_bc_policy_loss(q, action, batch["action"], self.bc_q_weight, self.mean_magnitude(q))
        return Loss(loss, {"actor_loss": loss, "q_policy": q})
