"""O2SAC: policy re-evaluation (Eq. 3), value alignment (Eqs. 10-13), constrained fine-tuning (Eqs. 36-39)."""

from typing import ClassVar

import torch
from torch import Tensor

from o2o_lightning.errors import check_subset
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
    Uniform,
    Updates,
)
from o2o_lightning.methods.o2.constraint import Constrained, Threshold
from o2o_lightning.methods.o2.hunting import Hunting
from o2o_lightning.methods.o2.reevaluation import Hastened
from o2o_lightning.methods.sac import SAC, SACActor, SACCritic
from o2o_lightning.nn.critics import Critics
from o2o_lightning.nn.squashed_gaussian import SquashedGaussian, SquashedGaussianActor
from o2o_lightning.objectives.alignment import alignment_loss, alignment_target_sac, calibrated_value_sac
from o2o_lightning.objectives.bellman import critic_loss, least, td_target
from o2o_lightning.objectives.constraint import kl_estimate
from o2o_lightning.objectives.diagnostics import bellman_residual
from o2o_lightning.objectives.ensembles import drawn_members
from o2o_lightning.objectives.sac import soft_value


class Reevaluate(Hastened, SACCritic):
    """Fitted Q-evaluation of π_off by SAC's target, Eq. 3, with a fixed temperature.

    Learns: the critics, from random weights. Frozen: π_off and the temperature. Hands on: the offline policy and its
    optimistic critics.
    """

    name: ClassVar[str] = "o2sac"
    pays_back: ClassVar[int | None] = 12_000
    magnitudes: ClassVar[tuple[str, ...]] = ("q",)
    layer_norm: bool = True

    def build(self, task: Task, source: Source | None = None) -> None:
        assert source is not None
        actor = source.build_actor().requires_grad_(False)
        self.take(actor, self.begun(Critics(*task.sizes, self.hidden, self.layer_norm, self.critics), task))
        self.log_alpha.requires_grad_(False)

    def learners(self) -> Learners:
        return {"critic": (self.critic, self.critic_lr)}

    def noise(self, shape: tuple[int, ...]) -> Draws:
        return {"target": Normal(shape)}

    def cache(self, batch: Batch) -> dict[str, Tensor]:
        policy = self.offline_actor.distribution(batch["next", "observation"])
        return {"next_offline_mean": policy.mean, "next_offline_log_std": policy.log_std}

    def critic_step(self, batch: Batch, noise: Noise) -> Loss:
        with torch.no_grad():
            target, log_prob = self.target(batch, self._next_policy(batch), noise)
        q = self.critic(batch["observation"], batch["action"])
        loss = critic_loss(q, target)
        return Loss(loss, {"critic_loss": loss, "q": q, "target": target, "log_prob": log_prob})

    def curves(self, batch: Batch) -> dict[str, Tensor]:
        policy = self._next_policy(batch)
        noise = torch.randn(policy.mean.shape, generator=torch.Generator().manual_seed(0)).to(policy.mean.device)
        next_action, log_prob = policy.sample(noise)  # the same at every measurement
        next_q = self.critic(batch["next", "observation"], next_action)
        next_value = soft_value(next_q, log_prob, self.log_alpha.exp())
        target = td_target(batch["reward"], batch["next", "terminated"], next_value, self.discount)
        q = self.critic(batch["observation"], batch["action"]).mean(0)
        return {"q": q.abs().mean(), "residual": bellman_residual(q, target)}

    def _next_policy(self, batch: Batch) -> SquashedGaussian:
        return SquashedGaussian(batch["next_offline_mean"], batch["next_offline_log_std"])


class Align(Hunting, SACActor):
    """No action is worth more than its log-probability under π_off allows, Eqs. 10–13.

    Learns: actor and critics. Frozen for the whole phase: the target critics, π_off and the temperature.
    Hands on: π_on and the aligned critics; the online phase makes its targets copies of them.

    Args:
        temperature: α, fixed, the re-evaluation's.
        actor_lr, critic_lr: Adam's rates; the critics keep their moments of the re-evaluation (D47).
        log_prob_floor: lower bound of log π_off at explored actions; None for none, as the official code (D13).
    """

    name: ClassVar[str] = "o2sac"
    pays_back: ClassVar[int | None] = 6_000
    needs_critic: ClassVar[bool] = True
    actor_lr: float = 1e-4
    critic_lr: float = 3e-4
    log_prob_floor: float | None = -50.0

    def build(self, task: Task, source: Source | None = None) -> None:
        assert source is not None
        self.take(source.build_actor(), source.build_critic())
        self.log_alpha.requires_grad_(False)
        source.load(self.target_critic, "target_critic")

    def noise(self, shape: tuple[int, ...]) -> Draws:
        return {"explored": Normal(shape), "policy": Normal(shape)}

    def cache(self, batch: Batch) -> dict[str, Tensor]:
        offline = self.offline_actor.distribution(batch["observation"])
        anchor = offline.anchor()
        return {
            "offline_mean": offline.mean,
            "offline_log_std": offline.log_std,
            "anchor": anchor,
            "anchor_log_prob": offline.log_prob(anchor),
            "anchor_value": least(self.target_critic(batch["observation"], anchor)),
        }

    def step(self, batch: Batch, noise: Noise) -> Loss:
        observation, anchor, anchor_value = batch["observation"], batch["anchor"], batch["anchor_value"]
        policy = self.actor.distribution(observation)  # serves both draws
        with torch.no_grad():
            explored, _ = policy.sample(noise["explored"])
            offline = SquashedGaussian(batch["offline_mean"], batch["offline_log_std"])
            offline_log_prob, alpha = offline.log_prob(explored), self.log_alpha.exp()
            calibrated = calibrated_value_sac(
                anchor_value, batch["anchor_log_prob"], offline_log_prob, alpha, self.log_prob_floor
            )
            target = alignment_target_sac(calibrated, self.target_critic(observation, explored))
        both = self.critic(torch.cat((observation, observation)), torch.cat((explored, anchor)))
        q_explored, q_anchor = both.chunk(2, -1)
        align, retain = alignment_loss(q_explored, target, q_anchor, anchor_value)
        draw = self.draw(observation, policy, noise["policy"])
        # Both losses see the networks before this step, and neither reaches the other's parameters: one backward.
        return Loss(
            align + retain + draw.loss,
            {
                "align_loss": align,
                "retain_loss": retain,
                "actor_loss": draw.loss,
                "q_explored": q_explored,
                "q_anchor": q_anchor,
                "target": target,
                "log_prob": draw.log_prob,
                "offline_log_prob": offline_log_prob,
            },
        )


class Online(Constrained, SAC):
    """SAC close to the best policy so far, Eqs. 36–39; the threshold is a KL, in nats.

    Learns: actor, critics, temperature, multiplier. Frozen: π_ref between swaps, and π_off. Without ``constraint`` it
    is plain SAC: "direct" fine-tuning from an offline checkpoint, or from scratch when no checkpoint is given. Actor
    and critics keep their Adam moments of the alignment (D47).

    Args:
        log_prob_floor: lower bound of log π_ref at sampled actions.
        subset: critics that bound each target, drawn anew for each update, of the re-evaluation's; None for all.
    """

    name: ClassVar[str] = "o2sac"
    pays_back: ClassVar[int | None] = 10_000
    actor_lr: float = 1e-4
    log_prob_floor: float = -50.0
    threshold: Threshold = Threshold(start=0.125, end=2.0)
    subset: int | None = None

    def take(self, actor: SquashedGaussianActor, critic: Critics) -> None:
        super().take(actor, critic)
        check_subset(self.subset, critic.spec.count, "`--reevaluate.model.critics` makes more.")

    def learners(self) -> Learners:
        return {**super().learners(), "multiplier": (self.log_multiplier, self.multiplier.lr)}

    def noise(self, shape: tuple[int, ...]) -> Draws:
        drawn: Draws = {} if self.subset is None else {"subset": Uniform((self.critic.spec.count,))}
        return super().noise(shape) | drawn

    def bounding(self, q: Tensor, noise: Noise) -> Tensor:
        return q if self.subset is None else q[drawn_members(noise["subset"], self.subset, False, len(q))]

    def update(self, moment: Moment) -> Updates:
        yield self.step_with_multiplier if self.multiplier_due(moment, policy_update=True) else self.step
        yield Follow(self.target_critic, self.critic, self.polyak)

    def step(self, batch: Batch, noise: Noise) -> Loss:
        loss, draw = self.losses(batch, noise)
        if not self.constraint:
            return loss
        divergence = self.divergence(batch["observation"], draw.action, draw.log_prob)
        multiplier = self.log_multiplier.detach().exp()
        metrics = {"divergence": divergence, "multiplier": multiplier, "threshold": self.threshold_now}
        return Loss(loss.value + multiplier * divergence.mean(), loss.metrics | metrics)

    def step_with_multiplier(self, batch: Batch, noise: Noise) -> Loss:
        loss = self.step(batch, noise)
        return self.with_multiplier(loss, loss.metrics["divergence"])

    def climb(self, batch: Batch, noise: Noise) -> Loss:
        return self.step(batch, noise)

    def penalized(self, next_value: Tensor, batch: Batch, action: Tensor, log_prob: Tensor) -> Tensor:
        if not self.constraint:
            return next_value
        return self.less_penalty(next_value, self.divergence(batch["next", "observation"], action, log_prob))

    def divergence(self, observation: Tensor, action: Tensor, log_prob: Tensor) -> Tensor:
        """The one-sample KL ``[B]`` from π_ref at the policy's ``action``."""
        with torch.no_grad():
            reference = self.reference_policy.distribution(observation)
        # the action carries the gradient into log π_ref, whose parameters are constants
        return kl_estimate(log_prob, reference.log_prob(action), self.log_prob_floor)
