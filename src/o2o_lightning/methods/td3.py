"""TD3 (Fujimoto et al. 2018, https://arxiv.org/abs/1802.09477)."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from o2o_lightning.errors import at_least
from o2o_lightning.methods.actor_critic import ActorCritic
from o2o_lightning.methods.method import (
    Batch,
    Draws,
    FloatArray,
    Follow,
    Loss,
    Moment,
    Noise,
    Normal,
    Source,
    Task,
    Updates,
)
from o2o_lightning.nn.actor import DeterministicActor
from o2o_lightning.nn.critics import Critics
from o2o_lightning.nn.targets import frozen_copy, hard_update
from o2o_lightning.objectives.bellman import critic_loss, least, td_target
from o2o_lightning.objectives.td3 import policy_loss, smoothed_action


class TD3Critic(ActorCritic):
    """Critics fitted to the smoothed action of a target policy, Eq. 6.

    Args:
        critic_lr: Adam's rate.
        discount, polyak: γ, and the targets' rate.
        policy_noise, noise_clip: σ and c of target-policy smoothing.
        hidden, layer_norm: widths of new networks, and LayerNorm before the critics' activations.
    """

    actor_kind: ClassVar[str | None] = DeterministicActor.kind
    makes_critic: ClassVar[bool] = True
    critic_lr: float = 3e-4
    discount: float = 0.99
    polyak: float = 0.005
    policy_noise: float = 0.2
    noise_clip: float = 0.5
    hidden: Sequence[int] = (256, 256)
    layer_norm: bool = False

    def fresh(self, task: Task) -> tuple[DeterministicActor, Critics]:
        return DeterministicActor(*task.sizes, self.hidden), Critics(*task.sizes, self.hidden, self.layer_norm)

    def noise(self, shape: tuple[int, ...]) -> Draws:
        return {"target": Normal(shape)}

    def critic_step(self, batch: Batch, noise: Noise) -> Loss:
        with torch.no_grad():
            next_action = smoothed_action(self.next_action(batch), noise["target"], self.policy_noise, self.noise_clip)
            next_value = self.next_value(batch, next_action)
            target = td_target(batch["reward"], batch["next", "terminated"], next_value, self.discount)
        q = self.critic(batch["observation"], batch["action"])
        loss = critic_loss(q, target)
        return Loss(loss, {"critic_loss": loss, "q": q, "target": target})

    def next_action(self, batch: Batch) -> Tensor:
        """The target policy's action ``[B, A]`` at the successors."""
        raise NotImplementedError(f"{type(self).__name__}.next_action")

    def next_value(self, batch: Batch, action: Tensor) -> Tensor:
        """A seam: what a successor is worth ``[B]`` by its smoothed ``action`` ``[B, A]``."""
        return self.penalized(least(self.target_critic(batch["next", "observation"], action)), batch)

    def penalized(self, next_value: Tensor, batch: Batch) -> Tensor:
        """A seam: what a successor is worth ``[B]`` when the policy there is not free."""
        return next_value


class TD3(TD3Critic):
    """A deterministic policy that climbs Q_1; targets of both, smoothed.

    Args:
        actor_lr: Adam's rate.
        policy_delay: critic updates for a policy update, with which both targets move.
        exploration_noise, exploration_clip: σ of the Gaussian noise on actions, and where it is clipped, None for
            nowhere.
    """

    name: ClassVar[str] = "td3"
    actor_lr: float = 3e-4
    policy_delay: int = 2
    exploration_noise: float = 0.1
    exploration_clip: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("--model.policy_delay", self.policy_delay, 1)

    def take(self, actor: Any, critic: Critics) -> None:
        super().take(actor, critic)
        self.target_actor = frozen_copy(actor)

    def take_targets(self, source: Source) -> None:
        super().take_targets(source)
        hard_update(self.target_actor, source.build_actor("target_actor"))

    def update(self, moment: Moment) -> Updates:
        yield self.critic_step
        if self.updates_policy(moment):
            yield self.policy_step
            yield Follow(self.target_critic, self.critic, self.polyak)
            yield Follow(self.target_actor, self.actor, self.polyak)

    def updates_policy(self, moment: Moment) -> bool:
        """Whether the policy moves in this update."""
        return (moment.update + 1) % self.policy_delay == 0

    def next_action(self, batch: Batch) -> Tensor:
        return self.target_actor(batch["next", "observation"])  # type: ignore[no-any-return]

    def policy_step(self, batch: Batch, noise: Noise) -> Loss:
        action = self.actor(batch["observation"])
        q = self.critic.first(batch["observation"], action, frozen=True)
        return self.policy_loss(q, action, batch)

    def policy_loss(self, q: Tensor, action: Tensor, batch: Batch) -> Loss:
        """A seam: what the policy descends, from Q_1 ``[B]`` at its ``action`` ``[B, A]``."""
        loss = policy_loss(q)
        return Loss(loss, {"actor_loss": loss, "q_policy": q})

    def mean_magnitude(self, q: Tensor) -> Tensor:
        """Mean of ``|q|`` over the batches of all processes, a constant."""
        return self.ranks.mean(q.detach().abs().mean())

    def act(self, observation: FloatArray, generator: np.random.Generator) -> FloatArray:
        action = self.explorer().act(observation)
        noise = generator.standard_normal(action.shape, dtype=np.float32) * self.exploration_noise
        if self.exploration_clip is not None:
            noise = np.clip(noise, -self.exploration_clip, self.exploration_clip)
        return np.clip(action + noise, -1.0, 1.0)  # type: ignore[no-any-return]
