"""RLPD (Ball et al. 2023, https://arxiv.org/abs/2302.02948): SAC from scratch beside the dataset's transitions."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from o2o_lightning.errors import at_least, check_subset
from o2o_lightning.methods.method import (
    Batch,
    Draws,
    Follow,
    Learners,
    Loss,
    Moment,
    Noise,
    Normal,
    Task,
    Uniform,
    Updates,
)
from o2o_lightning.methods.sac import SACCritic
from o2o_lightning.nn.critics import Critics
from o2o_lightning.nn.squashed_gaussian import SquashedGaussian, SquashedGaussianActor
from o2o_lightning.objectives.bellman import critic_loss, least, td_target
from o2o_lightning.objectives.ensembles import drawn_members, subset_least
from o2o_lightning.objectives.sac import temperature_loss


class RLPD(SACCritic):
    """Many critics with LayerNorm, many updates of them a step, one of the policy (Algorithm 1).

    Args:
        critics, subset: N critics, and how many of them bound each target, drawn once an update; None for all.
        replace: whether a critic may be drawn twice (D83).
        target_samples: actions at each successor; the one of the highest value counts.
        policy_value: what the policy climbs of all critics: their ``mean`` or the ``least``.
        policy_every: critic updates for one of the policy and the temperature; as many as ``--data.utd``.
        entropy_backup: subtract in the target what the policy's action costs, α·log π.
        target_entropy: H̄ of the temperature, in action dimensions.
        actor_lr, critic_lr, temperature_lr: Adam's rates.
        hidden, critic_hidden: widths of new networks.
    """

    name: ClassVar[str] = "rlpd"
    temperature: float = 1.0
    actor_lr: float = 3e-4
    temperature_lr: float = 3e-4
    hidden: Sequence[int] = (256, 256)
    critic_hidden: Sequence[int] = (256, 256)
    layer_norm: bool = True
    critics: int = 10
    subset: int | None = 2
    replace: bool = False
    target_samples: int = 1
    policy_value: Literal["mean", "least"] = "mean"
    policy_every: int = 20
    entropy_backup: bool = True
    target_entropy: float = -0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("--model.policy_every", self.policy_every, 1)
        at_least("--model.target_samples", self.target_samples, 1)

    def fresh(self, task: Task) -> tuple[SquashedGaussianActor, Critics]:
        critic = Critics(*task.sizes, self.critic_hidden, self.layer_norm, self.critics)
        return SquashedGaussianActor(*task.sizes, self.hidden), critic

    def take(self, actor: Any, critic: Critics) -> None:
        super().take(actor, critic)
        check_subset(self.subset, critic.spec.count)

    def learners(self) -> Learners:
        return {**super().learners(), "temperature": (self.log_alpha, self.temperature_lr)}

    def noise(self, shape: tuple[int, ...]) -> Draws:
        many = shape if self.target_samples == 1 else (self.target_samples, *shape)
        draws: Draws = {"policy": Normal(shape), "target": Normal(many)}
        if self.subset is not None:
            draws["subset"] = Uniform((self.subset if self.replace else self.critic.spec.count,))
        return draws

    def update(self, moment: Moment) -> Updates:
        yield self.critic_step
        yield Follow(self.target_critic, self.critic, self.polyak)
        if (moment.update + 1) % self.policy_every == 0:
            yield self.policy_step

    def critic_step(self, batch: Batch, noise: Noise) -> Loss:
        with torch.no_grad():
            policy = self.actor.distribution(batch["next", "observation"])
            target = self.bootstrap(batch, policy, noise)
        q = self.valued(self.critic, batch["observation"], batch["action"])
        loss = critic_loss(q, target) / len(q)
        return Loss(loss, {"critic_loss": loss, "q": q, "target": target})

    def bootstrap(self, batch: Batch, policy: SquashedGaussian, noise: Noise) -> Tensor:
        """The target ``[B]`` by the least of the drawn critics, and the ``policy`` at the successors."""
        action, log_prob = policy.sample(noise["target"])
        action = self.valued_action(action, noise)
        successor = batch["next", "observation"].expand(*action.shape[:-1], -1)
        value = self.bound(self.valued(self.target_critic, successor, action), noise)
        if self.entropy_backup:
            value = value - self.price(batch["next", "observation"], policy, noise["target"], log_prob)
        if self.target_samples > 1:
            value = value.amax(0)
        return td_target(batch["reward"], batch["next", "terminated"], value, self.discount)

    def valued_action(self, action: Tensor, noise: Noise) -> Tensor:
        """A seam: the action whose value the target takes, in place of the policy's own ``[…, B, A]``."""
        return action

    def bound(self, q: Tensor, noise: Noise) -> Tensor:
        """A seam: the pessimistic value ``[…, B]`` of all critics' ``q`` ``[N, …, B]``."""
        if self.subset is None:
            return least(q)
        return subset_least(q, drawn_members(noise["subset"], self.subset, self.replace, len(q)))

    def policy_step(self, batch: Batch, noise: Noise) -> Loss:
        """The policy's loss and the temperature's, of the same actions."""
        observation = batch["observation"]
        policy = self.actor.distribution(observation)
        action, log_prob = policy.sample(noise["policy"])
        q = self.climbed(self.valued(self.critic, observation, action, frozen=True))
        loss = (self.price(observation, policy, noise["policy"], log_prob) - q).mean()
        alpha_loss = temperature_loss(self.log_alpha, log_prob, self.target_entropy * self.actor.spec.action_dim)
        metrics = {"actor_loss": loss, "q_policy": q, "log_prob": log_prob, "temperature": self.log_alpha.exp()}
        return Loss(loss + alpha_loss, metrics)

    def price(self, observation: Tensor, policy: SquashedGaussian, noise: Tensor, log_prob: Tensor) -> Tensor:
        """A seam: what an action of the ``policy``, made of ``noise``, costs beside its value, ``[B]``."""
        return self.log_alpha.detach().exp() * log_prob

    def valued(self, critic: Critics, observation: Tensor, action: Tensor, frozen: bool = False) -> Tensor:
        """A seam: values ``[N, B]`` of actions ``[B, A]``."""
        values: Tensor = critic(observation, action, frozen)
        return values

    def climbed(self, q: Tensor) -> Tensor:
        """What the policy climbs ``[B]``, of ``q`` ``[N, B]``."""
        return q.mean(0) if self.policy_value == "mean" else least(q)
