"""ReBRAC (Tarasov et al. 2023, https://arxiv.org/abs/2305.09836): TD3+BC with its two pins apart."""

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from o2o_lightning.methods.actor_critic import GOES_ON
from o2o_lightning.methods.method import Batch, Loss, Moment, Noise, Task
from o2o_lightning.methods.td3 import TD3
from o2o_lightning.nn.actor import DeterministicActor
from o2o_lightning.nn.critics import Critics
from o2o_lightning.objectives.bellman import least
from o2o_lightning.objectives.schedules import linear_decay
from o2o_lightning.objectives.td3 import normalized_policy_loss


class ReBRAC(TD3):
    r"""A policy that climbs the least Q, divided by its mean magnitude, and pays :math:`\beta_a \|\pi(s) - a\|^2`.

    Online it acts without noise, and β_a falls.

    Args:
        policy_penalty: β_a, of the distance to the data's actions, summed over their dimensions.
        penalty_floor, penalty_env_steps: online β_a falls linearly towards 0 over so many steps, the budget by default,
            but to no less than this share of it.
        hidden: widths of new networks.
    """

    name: ClassVar[str] = "rebrac"
    carries_moments: ClassVar[tuple[str, ...]] = GOES_ON
    policy_penalty: float = 0.05
    penalty_floor: float = 0.5
    penalty_env_steps: int | None = None
    exploration_noise: float = 0.0
    layer_norm: bool = True
    hidden: Sequence[int] = (256, 256, 256)

    def build(self, task: Task, source: Any = None) -> None:
        self.total = self.penalty_env_steps or task.total
        super().build(task, source)

    def take(self, actor: DeterministicActor, critic: Critics) -> None:
        super().take(actor, critic)
        self.register_buffer("penalty_now", next(actor.parameters()).new_tensor(self.policy_penalty))

    def schedules(self, moment: Moment) -> dict[str, float]:
        share = max(linear_decay(moment.env_steps, self.total), self.penalty_floor)
        return {"penalty_now": self.policy_penalty * share}

    def policy_step(self, batch: Batch, noise: Noise) -> Loss:
        observation = batch["observation"]
        action = self.actor(observation)
        q = least(self.critic(observation, action, frozen=True))
        distance = (action - batch["action"]).square().sum(-1).mean()
        loss = normalized_policy_loss(q, self.mean_magnitude(q)) + self.penalty_now * distance
        return Loss(loss, {"actor_loss": loss, "q_policy": q, "distance": distance})


class Offline(ReBRAC):
    r"""The same on a dataset: the target pays :math:`\beta_c \|\tilde a' - a'\|^2` for leaving the data's next action.

    Args:
        critic_penalty: β_c.
    """

    needs: ClassVar[tuple[str, ...]] = ("next_action",)
    critic_penalty: float = 0.01

    def next_value(self, batch: Batch, action: Tensor) -> Tensor:
        distance: Tensor = (action - batch["next_action"]).square().sum(-1)
        known: Tensor = 1.0 - batch["next", "truncated"].float()  # behind a time-out the data has no action
        return super().next_value(batch, action) - self.critic_penalty * known * distance
