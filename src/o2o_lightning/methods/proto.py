"""PROTO (Li et al. 2023, https://arxiv.org/abs/2305.15669): close to where the policy was a while ago, ever less."""

from typing import Any, ClassVar, Literal

from torch import Tensor

from o2o_lightning.errors import at_least
from o2o_lightning.methods.actor_critic import ActorCritic
from o2o_lightning.methods.method import Batch, Follow, Loss, Moment, Noise, Source, Task, Updates
from o2o_lightning.methods.rlpd import RLPD
from o2o_lightning.methods.td3 import TD3
from o2o_lightning.nn.critics import Critics
from o2o_lightning.nn.gaussian import normal_log_prob
from o2o_lightning.nn.squashed_gaussian import SquashedGaussian
from o2o_lightning.nn.targets import frozen_copy
from o2o_lightning.objectives.bellman import least
from o2o_lightning.objectives.schedules import linear_decay
from o2o_lightning.objectives.td3 import normalized_policy_loss


class Fading(ActorCritic):
    """What is paid κ_t for, ever less.

    Args:
        strength: κ at the beginning.
        decay: share of κ that is lost, linearly, over ``decay_env_steps``; κ never falls below 0.
        decay_env_steps: the budget by default.
    """

    strength: float = 2.0
    decay: float = 0.9
    decay_env_steps: int | None = None

    def build(self, task: Task, source: Source | None = None) -> None:
        self.total = self.decay_env_steps or task.total
        super().build(task, source)

    def take(self, actor: Any, critic: Critics) -> None:
        super().take(actor, critic)
        self.register_buffer("strength_now", next(actor.parameters()).new_tensor(self.strength))

    def schedules(self, moment: Moment) -> dict[str, float]:
        return {"strength_now": self.strength * linear_decay(self.decay * moment.env_steps, self.total)}


class PROTO(Fading, RLPD):
    r"""SAC that pays :math:`\kappa_t (\log\pi - \log\pi_k)` for each action, π_k a slow copy of the policy (Eqs. 8–10).

    Args:
        anchor_rate: Polyak rate of π_k.
        entropy_backup: subtract what an action costs, κ's part included, in the target too.
    """

    name: ClassVar[str] = "proto"
    needs_critic: ClassVar[bool] = True
    needs_source: ClassVar[bool] = True
    temperature: float = 0.01
    subset: int | None = None
    policy_every: int = 1
    anchor_rate: float = 0.005

    def take(self, actor: Any, critic: Critics) -> None:
        super().take(actor, critic)
        self.anchor = frozen_copy(actor)

    def update(self, moment: Moment) -> Updates:
        yield from super().update(moment)
        yield Follow(self.anchor, self.actor, self.anchor_rate)

    def price(self, observation: Tensor, policy: SquashedGaussian, noise: Tensor, log_prob: Tensor) -> Tensor:
        pinned: Tensor = self.strength_now * self.log_ratio(observation, policy, noise)
        return super().price(observation, policy, noise, log_prob) + pinned

    def log_ratio(self, observation: Tensor, policy: SquashedGaussian, noise: Tensor) -> Tensor:
        """How much likelier ``[B]`` its action is under the ``policy`` than under π_k: tanh's own part cancels."""
        pre_tanh = policy.mean + policy.log_std.exp() * noise
        before = self.anchor.distribution(observation)
        return normal_log_prob(policy.mean, policy.log_std, pre_tanh) - normal_log_prob(
            before.mean, before.log_std, pre_tanh
        )


class PROTOTD3(Fading, TD3):
    r"""TD3 that pays :math:`\kappa_t \|a - \pi_k(s)\|^2`, π_k its target policy.

    Args:
        anchor_rate: Polyak rate of π_k.
        q_weight: of Q, divided by its mean magnitude.
        target_action: Q̄ is taken at the ``anchor``'s own action, as in the released code, or where its distance is, at
            the ``smoothed`` one (D71).
        policy_critic: the ``first`` critic is climbed, or the ``second`` as in the released code (D70).
    """

    name: ClassVar[str] = "proto_td3"
    needs_critic: ClassVar[bool] = True
    needs_source: ClassVar[bool] = True
    anchor_rate: float = 0.005
    q_weight: float = 2.5
    target_action: Literal["anchor", "smoothed"] = "anchor"
    policy_critic: Literal["first", "second"] = "first"
    exploration_noise: float = 0.2
    exploration_clip: float | None = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("--model.strength", self.strength, 0)

    def update(self, moment: Moment) -> Updates:
        yield self.critic_step
        if self.updates_policy(moment):
            yield self.policy_step
            yield Follow(self.target_critic, self.critic, self.polyak)
            yield Follow(self.target_actor, self.actor, self.anchor_rate)

    def next_action(self, batch: Batch) -> Tensor:
        return self.actor(batch["next", "observation"])  # type: ignore[no-any-return]

    def next_value(self, batch: Batch, action: Tensor) -> Tensor:
        """Q̄, less one mean distance of the smoothed ``action`` from π_k's own."""
        anchor = self.target_actor(batch["next", "observation"])
        valued = anchor if self.target_action == "anchor" else action
        value = least(self.target_critic(batch["next", "observation"], valued))
        distance: Tensor = self.ranks.mean((action - anchor).square().mean())
        return value - self.strength_now * distance  # type: ignore[no-any-return]

    def policy_step(self, batch: Batch, noise: Noise) -> Loss:
        observation = batch["observation"]
        action = self.actor(observation)
        q = self.critic(observation, action, frozen=True)[1 if self.policy_critic == "second" else 0]
        distance = (action - self.target_actor(observation)).square().mean()
        loss = self.q_weight * normalized_policy_loss(q, self.mean_magnitude(q)) + self.strength_now * distance
        return Loss(loss, {"actor_loss": loss, "q_policy": q, "distance": distance})
