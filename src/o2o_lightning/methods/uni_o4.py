"""Uni-O4 (Lei et al. 2023, https://arxiv.org/abs/2311.03351): PPO offline, behind a gate, then PPO online."""

import copy
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from o2o_lightning.errors import UserError, at_least
from o2o_lightning.methods.method import (
    Batch,
    Draws,
    Follow,
    Learners,
    Loss,
    Method,
    Moment,
    Noise,
    Normal,
    Source,
    Task,
    Updates,
)
from o2o_lightning.methods.ppo import PPO
from o2o_lightning.nn.critics import Critics, ValueNet
from o2o_lightning.nn.dynamics import Dynamics
from o2o_lightning.nn.gaussian import GaussianActor, GaussianHead, ReleasedHead
from o2o_lightning.nn.targets import frozen_copy
from o2o_lightning.objectives.awr import expectile_loss, iql_critic_loss
from o2o_lightning.objectives.bellman import least, td_target
from o2o_lightning.objectives.dynamics import dynamics_loss
from o2o_lightning.objectives.imitation import disagreement_loss
from o2o_lightning.objectives.ppo import clipped_surrogate, clipped_value_loss, normalized_advantage
from o2o_lightning.objectives.schedules import linear_decay


class Offline(Method):
    """Clones of the data that differ, each improved by PPO on the data's states, behind a gate of its own.

    At first the clones, Q and V of IQL, and a model of the environment learn, all from the same batches. Then, for the
    last ``improvement`` of the phase, PPO improves a candidate of each clone. Every ``gate_every`` updates candidates
    play in the model; one that the data's Q finds better there than its clone takes the clone's place. The best clone
    is handed on, with V.

    Args:
        members: how many clones.
        disagreement: weight of a clone's log-density less the largest of any.
        improvement: share of the updates, the last ones, in which PPO learns and nothing else.
        clip: ε of the clipped ratio; it falls linearly to 0 with ``improvement_lr``.
        gate: ``paired`` compares both from the same states, by the same networks of the model; ``record`` a candidate
            with the best score of any before it, from other states, as the code (D87).
        gate_every: updates between two tests.
        horizon: steps that a candidate plays in the model, from each state of the batch.
        models: networks of the model, each for as many of the rollouts.
        cloning_lr, improvement_lr, critic_lr, value_lr, model_lr: Adam's rates.
        max_grad_norm: clips the gradients of a candidate.
        expectile: κ of V's loss; 0.5 for the data's own values.
        discount, polyak: γ, and the rate of the target critics.
        hidden, critic_hidden, value_hidden, model_hidden: widths of clones, Q, V and model.
    """

    name: ClassVar[str] = "uni_o4"
    actor_kind: ClassVar[str | None] = GaussianHead.kind
    makes_critic: ClassVar[bool] = True
    members: int = 4
    disagreement: float = 0.1
    improvement: float = 0.01
    clip: float = 0.25
    gate: Literal["paired", "record"] = "paired"
    gate_every: int = 100
    horizon: int = 100
    models: int = 5
    cloning_lr: float = 1e-4
    improvement_lr: float = 1e-4
    critic_lr: float = 1e-4
    value_lr: float = 1e-4
    model_lr: float = 1e-3
    max_grad_norm: float = 0.5
    expectile: float = 0.7
    discount: float = 0.99
    polyak: float = 0.005
    hidden: Sequence[int] = (256, 256, 256)
    critic_hidden: Sequence[int] = (256, 256)
    value_hidden: Sequence[int] = (256, 256, 256)
    model_hidden: Sequence[int] = (200, 200, 200, 200)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("members", "gate_every", "horizon", "models"):
            at_least(f"--model.{name}", getattr(self, name), 1)
        if not 0.0 <= self.improvement <= 1.0:
            raise UserError(f"--model.improvement {self.improvement:g}: a share, 0 to 1, is needed.")

    def build(self, task: Task, source: Source | None = None) -> None:
        self.last = task.total
        self.first = self.last - round(self.improvement * self.last)  # update of the improvement
        self.clones: Any = nn.ModuleList(GaussianHead(*task.sizes, self.hidden) for _ in range(self.members))
        self.candidates: Any = copy.deepcopy(self.clones)
        self.judged: Any = frozen_copy(self.clones)
        self.actor: Any = frozen_copy(self.clones[0])
        self.offline_actor: Any = frozen_copy(self.actor)
        self.critic = Critics(*task.sizes, self.critic_hidden, layer_norm=False)
        self.target_critic = frozen_copy(self.critic)
        self.value = ValueNet(task.observation_dim, self.value_hidden)
        self.model = Dynamics(*task.sizes, tuple(self.model_hidden), self.models)
        self.register_buffer("clip_range", torch.tensor(self.clip))
        self.register_buffer("record", torch.full((self.members,), -torch.inf))
        for name in ("accepted", "chosen"):  # 1 for those members that a gate has let through, or has found the best
            self.register_buffer(name, torch.zeros(self.members))

    def learners(self) -> Learners:
        fitted = {"clones": self.cloning_lr, "critic": self.critic_lr, "value": self.value_lr, "model": self.model_lr}
        candidates = {f"candidate_{i}": (net, self.improvement_lr) for i, net in enumerate(self.candidates)}
        return {name: (getattr(self, name), rate) for name, rate in fitted.items()} | candidates

    def gradient_limits(self) -> dict[str, float]:
        return {f"candidate_{i}": self.max_grad_norm for i in range(self.members)}

    def rates(self, moment: Moment) -> dict[str, float]:
        return dict.fromkeys(self.gradient_limits(), self.improvement_lr * self.left(moment))

    def schedules(self, moment: Moment) -> dict[str, float]:
        return {"clip_range": self.clip * self.left(moment)}

    def left(self, moment: Moment) -> float:
        """The share of the improvement that is still to come."""
        return linear_decay(max(moment.update - self.first, 0), max(self.last - self.first, 1))

    def noise(self, shape: tuple[int, ...]) -> Draws:
        return {"action": Normal((self.members, *shape))}

    def update(self, moment: Moment) -> Updates:
        if moment.update < self.first:
            yield self.fit_step
            yield Follow(self.target_critic, self.critic, self.polyak)
            yield Follow(self.actor, self.clones[0], 1.0)
            return
        made = moment.update - self.first
        if made == 0:
            for clone, candidate in zip(self.clones, self.candidates, strict=True):
                yield Follow(candidate, clone, 1.0)
        if made % self.gate_every and moment.update != self.last - 1:
            yield self.improvement_step
            return
        for judged, candidate in zip(self.judged, self.candidates, strict=True):
            yield Follow(judged, candidate, 1.0)
        yield self.gate_step
        for i, (clone, judged) in enumerate(zip(self.clones, self.judged, strict=True)):
            yield Follow(clone, judged, self.accepted[..., i])
        for i, clone in enumerate(self.clones):
            yield Follow(self.actor, clone, self.chosen[..., i])

    def fit_step(self, batch: Batch, noise: Noise) -> Loss:
        """What needs no policy of its own; none of the losses reaches another's parameters: one backward."""
        observation, action, successor = batch["observation"], batch["action"], batch["next", "observation"]
        terminated, reward = batch["next", "terminated"], batch["reward"]
        log_prob = torch.stack([clone.log_prob(observation, action) for clone in self.clones])
        cloning = disagreement_loss(log_prob, self.disagreement)
        with torch.no_grad():
            bound = least(self.target_critic(observation, action))
            target = td_target(reward, terminated, self.value(successor), self.discount)
        value, q = self.value(observation), self.critic(observation, action)
        value_loss, critic_loss = expectile_loss(bound - value, self.expectile), iql_critic_loss(q, target)
        found, end = self.model(observation, action)
        model_loss = dynamics_loss(found, end, successor, terminated)
        metrics = {"imitation_loss": cloning / self.members, "log_prob": log_prob, "q": q, "value": value}
        metrics |= {"critic_loss": critic_loss, "value_loss": value_loss, "model_loss": model_loss}
        return Loss(cloning + value_loss + critic_loss + model_loss, metrics)

    def improvement_step(self, batch: Batch, noise: Noise) -> Loss:
        """PPO of each candidate on actions of its clone, which it began as or has last replaced."""
        observation, losses = batch["observation"], []
        for clone, candidate, drawn in zip(self.clones, self.candidates, noise["action"], strict=True):
            with torch.no_grad():
                action = clone.sampled(observation, drawn)
                advantage = least(self.critic(observation, action)) - self.value(observation)
                before = clone.log_prob(observation, action)
            ratio = (candidate.log_prob(observation, action) - before).exp()
            losses.append(clipped_surrogate(ratio, normalized_advantage(advantage), self.clip_range))
        loss = torch.stack(losses)
        return Loss(loss.sum(), {"actor_loss": loss})

    def gate_step(self, batch: Batch, noise: Noise) -> Loss:
        """An improvement, and beside it the verdict on the candidates as they were before it."""
        loss, observation = self.improvement_step(batch, noise), batch["observation"]
        score = torch.stack([self.score(judged, observation) for judged in self.judged])
        if self.gate == "paired":
            bar = torch.stack([self.score(clone, observation) for clone in self.clones])
        else:
            bar = self.record
        accepted, best = score > bar, torch.maximum(score, bar)
        chosen = torch.arange(self.members, device=best.device) == best.argmax()
        state = {"record": best, "accepted": accepted.to(best), "chosen": chosen.to(best)}
        return Loss(loss.value, loss.metrics | {"score": best, "accepted": state["accepted"]}, state)

    @torch.no_grad()
    def score(self, policy: GaussianActor, observation: Tensor) -> Tensor:
        """The mean of Q over what ``policy`` visits in the model until an end; −∞ where that is no number."""
        alive, total, visited = torch.ones_like(observation[:, 0]), observation.new_zeros(()), observation.new_zeros(())
        for _ in range(self.horizon):
            action = policy.mode(observation)
            total = total + torch.where(alive > 0, least(self.critic(observation, action)), 0.0).sum()
            visited = visited + alive.sum()
            observation, ended = self.model.step(observation, action)
            alive = torch.where(ended, 0.0, alive)
        return (total / visited).nan_to_num(nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf)


class UniO4(PPO):
    """PPO goes on online, with V as it was left.

    Args:
        clip: ε of the clipped ratio, and of how far V may move from what it said of the rollout.
        released_std: log σ as the code has it online, whose second tanh changes σ at the hand-over (D86).
    """

    name: ClassVar[str] = "uni_o4"
    actor_kind: ClassVar[str | None] = GaussianHead.kind
    needs_source: ClassVar[bool] = True
    actor_lr: float = 2e-5
    clip: float = 0.05
    released_std: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.std_cap is not None:
            raise UserError("--model.std_cap: this policy has a σ for each state, which none can cap. Leave it out.")

    def take(self, actor: Any, value: ValueNet) -> None:
        if self.released_std:
            given, spec = actor, actor.spec
            actor = ReleasedHead(spec.observation_dim, spec.action_dim, spec.hidden)
            actor.load_state_dict(given.state_dict())
        super().take(actor, value)

    def value_step(self, batch: Batch, noise: Noise) -> Loss:
        value = self.value(batch["observation"])
        loss = clipped_value_loss(value, batch["value"], batch["value_target"], self.clip)
        return Loss(loss, {"value_loss": loss})
