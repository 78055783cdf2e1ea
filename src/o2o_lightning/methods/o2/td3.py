"""O2TD3: policy re-evaluation (Eq. 6), value alignment (Eqs. 15-16, 40-44), constrained fine-tuning (Eqs. 45-47)."""

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from o2o_lightning.methods.actor_critic import ActorCritic
from o2o_lightning.methods.method import (
    Batch,
    Draws,
    Follow,
    Learners,
    Loss,
    Moment,
    Noise,
    Normal,
    Source,
    Task,
    Updates,
)
from o2o_lightning.methods.o2.constraint import Constrained
from o2o_lightning.methods.o2.hunting import Hunting
from o2o_lightning.methods.o2.reevaluation import Hastened
from o2o_lightning.methods.td3 import TD3, TD3Critic
from o2o_lightning.nn.actor import DeterministicActor
from o2o_lightning.nn.critics import Critics
from o2o_lightning.nn.targets import hard_update
from o2o_lightning.objectives.alignment import (
    action_distance,
    alignment_loss,
    alignment_target_td3,
    calibrated_value_td3,
)
from o2o_lightning.objectives.bellman import least, td_target
from o2o_lightning.objectives.constraint import squared_divergence
from o2o_lightning.objectives.diagnostics import bellman_residual
from o2o_lightning.objectives.td3 import normalized_policy_loss, policy_loss, smoothed_action


class Reevaluate(Hastened, TD3Critic):
    """Fitted Q-evaluation of π_off, which is also the target actor, Eq. 6.

    Learns: the critics, from random weights. Frozen: π_off. Hands on: the offline policy and its optimistic critics.
    The targets move at every update; LayerNorm is off on AntMaze (D12).
    """

    name: ClassVar[str] = "o2td3"
    pays_back: ClassVar[int | None] = 15_000
    magnitudes: ClassVar[tuple[str, ...]] = ("q",)
    layer_norm: bool = True

    def build(self, task: Task, source: Source | None = None) -> None:
        assert source is not None
        actor = source.build_actor().requires_grad_(False)
        self.take(actor, self.begun(Critics(*task.sizes, self.hidden, self.layer_norm), task))

    def learners(self) -> Learners:
        return {"critic": (self.critic, self.critic_lr)}

    def cache(self, batch: Batch) -> dict[str, Tensor]:
        return {"next_offline_action": self.offline_actor.mode(batch["next", "observation"])}

    def next_action(self, batch: Batch) -> Tensor:
        return batch["next_offline_action"]  # type: ignore[no-any-return]

    def curves(self, batch: Batch) -> dict[str, Tensor]:
        next_value = least(self.critic(batch["next", "observation"], batch["next_offline_action"]))
        target = td_target(batch["reward"], batch["next", "terminated"], next_value, self.discount)
        q = self.critic(batch["observation"], batch["action"]).mean(0)
        return {"q": q.abs().mean(), "residual": bellman_residual(q, target)}


class Align(Hunting, ActorCritic):
    """The critic calibrated to π_off, while a copy of the policy hunts its errors, Eqs. 15–16 and 40–44.

    Learns: actor and critics. Frozen for the whole phase: the target critics and π_off.
    Hands on: π_on and the aligned critics; the online phase makes its targets copies of them.

    Args:
        actor_lr, critic_lr: Adam's rates; the critics keep their moments of the re-evaluation (D47).
        curvature: k of Eq. 15.
        policy_noise, noise_clip: σ and c of the perturbed action; σ is also the distance's cap.
    """

    name: ClassVar[str] = "o2td3"
    actor_kind: ClassVar[str | None] = DeterministicActor.kind
    pays_back: ClassVar[int | None] = 10_000
    needs_critic: ClassVar[bool] = True
    actor_lr: float = 1e-4
    critic_lr: float = 3e-4
    curvature: float = 1.0
    policy_noise: float = 0.2
    noise_clip: float = 0.5

    def build(self, task: Task, source: Source | None = None) -> None:
        assert source is not None
        self.take(source.build_actor(), source.build_critic())
        source.load(self.target_critic, "target_critic")

    def noise(self, shape: tuple[int, ...]) -> Draws:
        return {"perturbation": Normal(shape)}

    def cache(self, batch: Batch) -> dict[str, Tensor]:
        anchor = self.offline_actor.mode(batch["observation"])
        return {"anchor": anchor, "anchor_value": least(self.target_critic(batch["observation"], anchor))}

    def step(self, batch: Batch, noise: Noise) -> Loss:
        observation, anchor, anchor_value = batch["observation"], batch["anchor"], batch["anchor_value"]
        action = self.actor(observation)
        with torch.no_grad():
            perturbed = smoothed_action(action, noise["perturbation"], self.policy_noise, self.noise_clip)
            distance = action_distance(perturbed, anchor, self.policy_noise)
            calibrated = calibrated_value_td3(anchor_value, distance, self.curvature)
            target = alignment_target_td3(calibrated, self.target_critic(observation, perturbed))
        both = self.critic(torch.cat((observation, observation)), torch.cat((perturbed, anchor)))
        q_perturbed, q_anchor = both.chunk(2, -1)
        align, retain = alignment_loss(q_perturbed, target, q_anchor, anchor_value)
        actor_loss = policy_loss(self.critic.first(observation, action, frozen=True))
        # Both losses see the networks before this step, and neither reaches the other's parameters: one backward.
        return Loss(
            align + retain + actor_loss,
            {
                "align_loss": align,
                "retain_loss": retain,
                "actor_loss": actor_loss,
                "q_perturbed": q_perturbed,
                "q_anchor": q_anchor,
                "target": target,
                "distance": distance,
            },
        )


class Online(Constrained, TD3):
    """TD3 close to the best policy so far, Eqs. 45–47.

    Learns: actor, critics, multiplier. Frozen: π_ref between swaps, and π_off. Without ``constraint`` it is plain TD3:
    "direct" fine-tuning from an offline checkpoint, or from scratch when no checkpoint is given. Actor and critics keep
    their Adam moments of the alignment (D47).

    Args:
        normalize_q: divide the policy loss by mean|Q| (D9).
        penalty: divergence in the critic's target: of each next state, or the whole batch's mean (D10).
    """

    name: ClassVar[str] = "o2td3"
    pays_back: ClassVar[int | None] = 20_000
    actor_lr: float = 1e-4
    normalize_q: bool = True
    penalty: Literal["state", "batch"] = "state"

    def learners(self) -> Learners:
        return {**super().learners(), "multiplier": (self.log_multiplier, self.multiplier.lr)}

    def update(self, moment: Moment) -> Updates:
        policy_update = self.updates_policy(moment)
        due = self.multiplier_due(moment, policy_update, self.policy_delay)
        yield self.critic_step
        if policy_update:
            yield self.policy_and_multiplier_step if due else self.policy_step
            yield Follow(self.target_critic, self.critic, self.polyak)
            yield Follow(self.target_actor, self.actor, self.polyak)
        elif due:
            yield self.multiplier_step

    def penalized(self, next_value: Tensor, batch: Batch) -> Tensor:
        if not self.constraint:
            return next_value
        divergence = squared_divergence(*self.actions(batch["next", "observation"]))
        penalty = divergence.mean(-1) if self.penalty == "state" else self.ranks.mean(divergence.mean())
        return self.less_penalty(next_value, penalty)

    def policy_loss(self, q: Tensor, action: Tensor, batch: Batch) -> Loss:
        loss = normalized_policy_loss(q, self.mean_magnitude(q)) if self.normalize_q else policy_loss(q)
        metrics = {"actor_loss": loss, "q_policy": q}
        if not self.constraint:
            return Loss(loss, metrics)
        with torch.no_grad():
            reference_action = self.reference_policy(batch["observation"])
        divergence = squared_divergence(action, reference_action)
        multiplier = self.log_multiplier.detach().exp()
        metrics |= {"divergence": divergence, "multiplier": multiplier, "threshold": self.threshold_now}
        return Loss(loss + multiplier * divergence.mean(), metrics)

    def climb(self, batch: Batch, noise: Noise) -> Loss:
        return self.policy_step(batch, noise)

    def become(self, actor: nn.Module) -> None:
        super().become(actor)
        hard_update(self.target_actor, actor)

    @torch.no_grad()
    def loss_scale(self, batch: Batch) -> float:
        q = self.critic.first(batch["observation"], self.actor(batch["observation"]))
        return 1.0 / float(self.mean_magnitude(q)) if self.normalize_q else 1.0

    def policy_and_multiplier_step(self, batch: Batch, noise: Noise) -> Loss:
        loss = self.policy_step(batch, noise)
        return self.with_multiplier(loss, loss.metrics["divergence"])

    def multiplier_step(self, batch: Batch, noise: Noise) -> Loss:
        with torch.no_grad():
            divergence = squared_divergence(*self.actions(batch["observation"]))
        return self.with_multiplier(Loss(divergence.new_zeros(()), {}), divergence)

    def actions(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """The policy's and π_ref's actions ``[B, A]``."""
        return self.actor(observation), self.reference_policy(observation)
