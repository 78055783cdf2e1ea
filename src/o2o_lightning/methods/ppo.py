"""PPO (Schulman et al. 2017, https://arxiv.org/abs/1707.06347): rounds of updates on what the policy has just done."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from tensordict import TensorDict
from torch import Tensor

from o2o_lightning.methods.method import Batch, Learners, Loss, Method, Moment, Noise, Source, Task, Updates
from o2o_lightning.nn.critics import ValueNet
from o2o_lightning.nn.gaussian import GaussianActor, normal_entropy, normal_log_prob
from o2o_lightning.nn.normalizer import RewardScale
from o2o_lightning.nn.optimizers import Adam
from o2o_lightning.nn.targets import frozen_copy
from o2o_lightning.objectives.ppo import (
    advantage_and_target,
    clipped_surrogate,
    explained_variance,
    normal_divergence,
    normalized_advantage,
    value_loss,
)
from o2o_lightning.objectives.schedules import linear_decay

LOG_STD_BOUNDS = (-10.0, 2.0)


class ValueMethod(Method):
    """A Gaussian policy, a state-value network, and the running scale of rewards.

    Args:
        value_lr: Adam's rate for V.
        discount: γ.
        reward_scaling: ``dynamic`` divides rewards by the running deviation of the discounted return.
    """

    actor_kind: ClassVar[str | None] = GaussianActor.kind
    value_lr: float
    discount: float = 0.99
    reward_scaling: Literal["none", "dynamic"] = "none"

    def take(self, actor: GaussianActor, value: ValueNet) -> None:
        """Makes ``actor`` and ``value`` its own, with a copy of the policy as π_off."""
        actor.log_std_bounds = LOG_STD_BOUNDS
        self.actor, self.offline_actor = actor, frozen_copy(actor)
        self.value, self.reward_scale = value, RewardScale(self.discount)


class PPO(ValueMethod):
    """Clipped steps on the advantage of each rollout.

    Args:
        actor_lr, value_lr: Adam's rates, both falling linearly to 0 over ``decay_env_steps``.
        decay_env_steps: environment steps of that decay; the budget by default.
        discount, gae_lambda: γ, and the decay of the advantage's horizon.
        clip: ε of the clipped ratio.
        entropy: weight of the entropy bonus.
        max_grad_norm: clips the gradients of actor and V, each on its own.
        std_cap: largest σ before fine-tuning, applied once (D21).
        hidden, value_hidden: networks that are made anew: all of them from scratch, V where no phase has fitted one.
    """

    name: ClassVar[str] = "ppo"
    on_policy: ClassVar[bool] = True
    carries_moments: ClassVar[tuple[str, ...]] = ()  # V's optimizer is new (D47), the actor has learned offline at most
    actor_lr: float = 3e-5
    value_lr: float = 2e-4
    decay_env_steps: int | None = None
    gae_lambda: float = 0.95
    clip: float = 0.2
    entropy: float = 0.01
    max_grad_norm: float = 0.5
    std_cap: float | None = None
    hidden: Sequence[int] = (256, 256)
    value_hidden: Sequence[int] = (256, 256, 256)

    def build(self, task: Task, source: Source | None = None) -> None:
        self.task = task
        self.register_buffer("running_return", torch.zeros(task.environments, dtype=torch.float64))
        actor: GaussianActor = GaussianActor(*task.sizes, self.hidden) if source is None else source.build_actor()
        if self.std_cap is not None:
            actor.cap_std(self.std_cap)
        value = None if source is None else source.build_value()
        self.take(actor, value or ValueNet(task.observation_dim, self.value_hidden, "tanh"))
        if source is not None and source.has("reward_scale"):
            source.load(self.reward_scale, "reward_scale")

    def learners(self) -> Learners:
        return {"actor": (self.actor, self.actor_lr), "value": (self.value, self.value_lr)}

    def optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return Adam(groups, eps=1e-5)

    def rates(self, moment: Moment) -> dict[str, float]:
        # lowered after the updates of each rollout, so this one's are those of the step at which it began
        factor = linear_decay(moment.env_steps - self.task.rollout, self.decay_env_steps or self.task.total)
        return {"actor": self.actor_lr * factor, "value": self.value_lr * factor}

    def gradient_limits(self) -> dict[str, float]:
        return dict.fromkeys(("actor", "value"), self.max_grad_norm)

    def update(self, moment: Moment) -> Updates:
        yield self.policy_step
        yield self.value_step

    def policy_step(self, batch: Batch, noise: Noise) -> Loss:
        mean, log_std = self.actor(batch["observation"])
        ratio = (normal_log_prob(mean, log_std, batch["action"]) - batch["log_prob"]).exp()
        entropy = normal_entropy(log_std).mean()
        loss = clipped_surrogate(ratio, batch["advantage"], self.clip) - self.entropy * entropy
        return Loss(loss, {"actor_loss": loss, "entropy": entropy})

    def value_step(self, batch: Batch, noise: Noise) -> Loss:
        loss = value_loss(self.value(batch["observation"]), batch["value_target"])
        return Loss(loss, {"value_loss": loss})

    # ---- around the updates of one rollout ---------------------------------------------------------------------

    @torch.no_grad()
    def begin_rollout(self, rollout: Batch, env_steps: int) -> TensorDict:
        """What the updates need of a rollout ``[N, T]``, as rows ``[N·T]``."""
        observation, successor = rollout["observation"], rollout["next"]
        terminated = successor["terminated"].bool()
        ended = terminated | successor["truncated"]
        reward = rollout["reward"]
        if self.reward_scaling == "dynamic":
            # one scale of the rewards of all processes, the same in each
            everyone, gathered = self.ranks.gather(reward), self.ranks.gather(ended)
            everyone, running = self.reward_scale(everyone, gathered, self.running_return)
            reward = self.ranks.own(everyone)
            self.running_return.copy_(running)
        both = torch.stack((observation, successor["observation"]))
        value, next_value = self.value(both).to(reward.dtype)  # mixed precision ends where rewards are summed up
        advantage, target = advantage_and_target(
            value, next_value, reward, terminated, ended, self.discount, self.gae_lambda
        )
        mean, log_std = self.actor(observation.flatten(0, 1))
        rows = {
            "observation": observation.flatten(0, 1),
            "action": rollout["action"].flatten(0, 1),
            "value": value.flatten(),
            "value_target": target.flatten(),
            "mean": mean,
            "log_std": log_std.expand_as(mean),
        }
        rows["log_prob"] = self.actor.log_prob(rows["observation"], rows["action"])
        combined = self.combined_advantage(advantage.flatten(), rows, env_steps)
        rows["advantage"] = normalized_advantage(combined, self.ranks.gather(combined))
        return TensorDict(rows, [len(mean)])

    @torch.no_grad()
    def end_rollout(self, rows: Batch) -> dict[str, Tensor]:
        """How far the updates have moved the policy, and how well V knew the rollout before them."""
        mean = rows["mean"]
        new_mean, new_log_std = self.actor(rows["observation"])
        ratio = (self.actor.log_prob(rows["observation"], rows["action"]) - rows["log_prob"]).exp()
        return {
            "kl": normal_divergence(mean, rows["log_std"], new_mean, new_log_std).mean(),
            "clip_fraction": ((ratio - 1.0).abs() > self.clip).float().mean(),
            "explained_variance": explained_variance(rows["value"], rows["value_target"]),
            "std": new_log_std.exp().mean(),
            "std_max": new_log_std.exp().max(),
        }

    def combined_advantage(self, advantage: Tensor, rows: dict[str, Tensor], env_steps: int) -> Tensor:
        """A seam: what is climbed, ``[N·T]``."""
        return advantage
