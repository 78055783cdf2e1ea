"""SAC (Haarnoja et al. 2018, https://arxiv.org/abs/1812.05905)."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from o2o_lightning.errors import at_least
from o2o_lightning.methods.actor_critic import ActorCritic
from o2o_lightning.methods.method import Batch, Draws, Follow, Learners, Loss, Moment, Noise, Normal, Task, Updates
from o2o_lightning.nn.critics import Critics
from o2o_lightning.nn.squashed_gaussian import SquashedGaussian, SquashedGaussianActor
from o2o_lightning.objectives.bellman import critic_loss, td_target
from o2o_lightning.objectives.sac import soft_policy_loss, soft_value, temperature_loss

Ends = tuple[SquashedGaussian, SquashedGaussian]  # the policy at s and at s'


class Draw(NamedTuple):
    """Actions ``[B, A]`` of the policy with their log-probabilities and values, and the policy's loss there."""

    action: Tensor
    log_prob: Tensor
    q: Tensor
    loss: Tensor


class SACActor(ActorCritic):
    """A squashed Gaussian, critics, and the temperature α = exp(``log_alpha``).

    Args:
        temperature: α at the beginning; 0.2 for medium data, 0.5 for expert-like data.
    """

    actor_kind: ClassVar[str | None] = SquashedGaussianActor.kind
    temperature: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("--model.temperature", self.temperature, 1e-6)

    def take(self, actor: Any, critic: Critics) -> None:
        super().take(actor, critic)
        self.log_alpha = nn.Parameter(torch.tensor(math.log(self.temperature)))

    def draw(self, observation: Tensor, policy: SquashedGaussian, noise: Tensor) -> Draw:
        """The policy's loss at fresh actions, Eq. 2, with the critics as constants."""
        action, log_prob = policy.sample(noise)
        q = self.critic(observation, action, frozen=True)
        return Draw(action, log_prob, q, soft_policy_loss(q, log_prob, self.log_alpha.detach().exp()))


class SACCritic(SACActor):
    """Critics fitted to a policy's soft value, Eq. 3.

    Args:
        critic_lr: Adam's rate.
        discount, polyak: γ, and the target critics' rate, applied at every update.
        hidden, layer_norm, critics: widths of new networks, LayerNorm before the critics' activations, and how many
            critics; one on AntMaze.
    """

    makes_critic: ClassVar[bool] = True
    critic_lr: float = 3e-4
    discount: float = 0.99
    polyak: float = 0.005
    hidden: Sequence[int] = (256, 256, 256)
    layer_norm: bool = False
    critics: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("--model.critics", self.critics, 1)

    def target(self, batch: Batch, policy: SquashedGaussian, noise: Noise) -> tuple[Tensor, Tensor]:
        """What Q should be ``[B]``, by the ``policy`` at the successors, and its action's log-probability ``[B]``."""
        action, log_prob = policy.sample(noise["target"])
        q = self.bounding(self.target_critic(batch["next", "observation"], action), noise)
        value = self.penalized(soft_value(q, log_prob, self.log_alpha.detach().exp()), batch, action, log_prob)
        return td_target(batch["reward"], batch["next", "terminated"], value, self.discount), log_prob

    def bounding(self, q: Tensor, noise: Noise) -> Tensor:
        """A seam: those of all critics' values ``[E, B]`` of which the least is a target's."""
        return q

    def penalized(self, next_value: Tensor, batch: Batch, action: Tensor, log_prob: Tensor) -> Tensor:
        """A seam: what a successor is worth ``[B]`` when the policy there is not free."""
        return next_value


class SAC(SACCritic):
    """A squashed Gaussian that climbs the lesser Q with an entropy held at −A; every loss is formed before any step.

    Args:
        actor_lr: Adam's rate.
        temperature_lr: Adam's rate for log α; the actor's where None.
        critic_hidden: widths of new critics.
    """

    name: ClassVar[str] = "sac"
    actor_lr: float = 3e-4
    temperature_lr: float | None = 3e-4
    critic_hidden: Sequence[int] = (256, 256, 256)

    def fresh(self, task: Task) -> tuple[SquashedGaussianActor, Critics]:
        critic = Critics(*task.sizes, self.critic_hidden, self.layer_norm, self.critics)
        return SquashedGaussianActor(*task.sizes, self.hidden), critic

    def learners(self) -> Learners:
        rate = self.actor_lr if self.temperature_lr is None else self.temperature_lr
        return {**super().learners(), "temperature": (self.log_alpha, rate)}

    def noise(self, shape: tuple[int, ...]) -> Draws:
        return {"policy": Normal(shape), "target": Normal(shape)}

    def update(self, moment: Moment) -> Updates:
        yield self.step
        yield Follow(self.target_critic, self.critic, self.polyak)

    def step(self, batch: Batch, noise: Noise) -> Loss:
        return self.losses(batch, noise)[0]

    def losses(self, batch: Batch, noise: Noise) -> tuple[Loss, Draw]:
        """All losses, Eqs. 2–4, and the actions that the policy's was formed of."""
        observation = batch["observation"]
        current = self.actor.distribution(observation)  # one pass of the trunk for each set of states serves all draws
        with torch.no_grad():
            following = self.actor.distribution(batch["next", "observation"])
        alpha = self.log_alpha.detach().exp()
        draw = self.draw(observation, current, noise["policy"])
        alpha_loss = temperature_loss(self.log_alpha, draw.log_prob, -float(self.actor.spec.action_dim))
        with torch.no_grad():
            target = self.bootstrap(batch, following, noise)
        q = self.critic(observation, batch["action"])
        values = self.critic_loss(q, target, batch, noise, (current, following))
        metrics = {**values.metrics, "actor_loss": draw.loss, "q": q, "q_policy": draw.q, "target": target}
        metrics |= {"log_prob": draw.log_prob, "temperature": alpha}
        # Every loss is formed before any network moves, and none reaches another's parameters: one backward (D32).
        return Loss(values.value + draw.loss + alpha_loss, metrics), draw

    def bootstrap(self, batch: Batch, policy: SquashedGaussian, noise: Noise) -> Tensor:
        """A seam: what Q should be ``[B]``, by the ``policy`` at the successors."""
        return self.target(batch, policy, noise)[0]

    def critic_loss(self, q: Tensor, target: Tensor, batch: Batch, noise: Noise, policies: Ends) -> Loss:
        """A seam: what the critics descend, from ``q`` ``[E, B]``, and the policy at both ends of a transition."""
        loss = critic_loss(q, target)
        return Loss(loss, {"critic_loss": loss})
