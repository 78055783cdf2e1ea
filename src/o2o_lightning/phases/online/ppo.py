"""Constrained fine-tuning with PPO."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from o2o_lightning.agents.ppo import PPOAgent
from o2o_lightning.checkpoint.handover import POLICIES, Handover
from o2o_lightning.data.rollout import RolloutData
from o2o_lightning.errors import UserError
from o2o_lightning.nn.gaussian import GaussianActor, normal_entropy
from o2o_lightning.nn.values import ValueNet
from o2o_lightning.objectives.ppo import (
    advantage_and_target,
    auxiliary_advantage,
    clipped_surrogate,
    combined_advantage,
    explained_variance,
    log_density_terms,
    normal_divergence,
    normalized_advantage,
    value_loss,
)
from o2o_lightning.objectives.schedules import linear_decay
from o2o_lightning.phases.base import Loss
from o2o_lightning.phases.online.base import ReferencedPhase
from o2o_lightning.phases.settings import Auxiliary, Reference
from o2o_lightning.phases.steps import step_function


class OnlinePPO(ReferencedPhase):
    """Constrained fine-tuning with PPO.

    Learns: actor and V. Frozen: π_ref between swaps, and π_off. O2PPO has no alignment phase and no multiplier: the
    auxiliary advantage draws the policy to π_ref, less and less, while π_ref follows the best policy. Without
    ``auxiliary_advantage`` it is plain PPO: "direct" fine-tuning, or from scratch when no checkpoint is given.

    Args:
        init_from: checkpoint of the re-evaluation; of the offline phase for ablations.
        auxiliary_advantage: False leaves PPO's own advantage alone.
        constraint: False keeps π_ref where it starts (ablation).
        actor_lr, value_lr: Adam's rates, both falling linearly to 0 over ``decay_env_steps``.
        decay_env_steps: environment steps of that decay; the budget by default.
        discount, gae_lambda: γ, and the decay of the advantage's horizon.
        clip: ε of the clipped ratio.
        entropy: weight of the entropy bonus.
        max_grad_norm: clips the gradients of actor and V, each on its own.
        std_cap: largest σ before fine-tuning, applied once (D21).
        reward_scaling: ``dynamic`` divides rewards by the running deviation of the discounted return.
        auxiliary, reference: see :mod:`o2o_lightning.phases.settings`.
        hidden, value_hidden: networks that are made anew: all of them from scratch, V where no phase has fitted one.
        options: as in :class:`o2o_lightning.phases.base.Phase`.
    """

    algorithm: ClassVar[str] = "o2ppo"
    actor_kind: ClassVar[str | None] = GaussianActor.kind
    accepts: ClassVar[tuple[str, ...]] = ("reevaluate", *POLICIES)
    adam_eps: ClassVar[float] = 1e-5
    carries_moments: ClassVar[bool] = False  # V gets a new optimizer (D47), and the actor has learned offline at most
    agent: PPOAgent
    running_return: Tensor

    def __init__(
        self,
        init_from: str | None = None,
        auxiliary_advantage: bool = True,
        constraint: bool = True,
        actor_lr: float = 3e-5,
        value_lr: float = 2e-4,
        decay_env_steps: int | None = None,
        discount: float = 0.99,
        gae_lambda: float = 0.95,
        clip: float = 0.2,
        entropy: float = 0.01,
        max_grad_norm: float = 0.5,
        std_cap: float | None = None,
        reward_scaling: Literal["none", "dynamic"] = "none",
        auxiliary: Auxiliary = Auxiliary(),
        reference: Reference = Reference(period=2500),
        hidden: Sequence[int] = (256, 256),
        value_hidden: Sequence[int] = (256, 256, 256),
        **options: Any,
    ) -> None:
        super().__init__(init_from, auxiliary_advantage, reference, **options)
        if reference.threshold_scale != 1.0:
            raise UserError("--model.reference.threshold_scale: O2PPO has no threshold. Leave it out.")
        if not constraint:
            self.reference_settings = Reference("frozen", reference.start, reference.period)
        self.auxiliary_advantage, self.auxiliary = auxiliary_advantage, auxiliary
        self.actor_lr, self.value_lr, self.decay_env_steps = actor_lr, value_lr, decay_env_steps
        self.discount, self.gae_lambda, self.clip, self.entropy = discount, gae_lambda, clip, entropy
        self.max_grad_norm, self.std_cap, self.reward_scaling = max_grad_norm, std_cap, reward_scaling
        self.hidden, self.value_hidden = tuple(hidden), tuple(value_hidden)

    @property
    def rollouts(self) -> RolloutData:
        """The DataModule, which collects rollouts."""
        return cast(RolloutData, self.data)

    def build(self, source: Handover | None) -> PPOAgent:
        sizes = self.data.sizes()
        environments = self.rollouts.num_envs * self.ranks.count
        self.register_buffer("running_return", torch.zeros(environments, dtype=torch.float64))
        actor = GaussianActor(*sizes, self.hidden) if source is None else cast(GaussianActor, source.build_actor())
        if self.std_cap is not None:
            actor.cap_std(self.std_cap)
        value = None if source is None else source.build_value()
        agent = PPOAgent(actor, value or ValueNet(sizes[0], self.value_hidden, "tanh"), self.discount)
        if source is not None and source.has("reward_scale"):
            source.load(agent.reward_scale, "reward_scale")
        return agent

    def learners(self) -> dict[str, tuple[nn.Module | nn.Parameter, float]]:
        return {"actor": (self.agent.actor, self.actor_lr), "value": (self.agent.value, self.value_lr)}

    def rates(self) -> dict[str, float]:
        # lowered after the updates of each rollout, so this one's are those of the step at which it began
        begun = self.env_steps - self.rollouts.rollout
        factor = linear_decay(begun, self.decay_env_steps or self.rollouts.budget)
        return {"actor": self.actor_lr * factor, "value": self.value_lr * factor}

    def gradient_limits(self) -> dict[str, float]:
        return dict.fromkeys(("actor", "value"), self.max_grad_norm)

    def explore(self, observation: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.float32]:
        return self.agent.actor.sample(observation, generator)

    def update(self, batch: TensorDictBase) -> Iterator[Loss]:
        yield self._policy_loss(batch)
        yield self._value_loss(batch)

    @step_function
    def _policy_loss(self, batch: TensorDictBase) -> Loss:
        observation, actor = batch["observation"], self.agent.actor
        ratio = (actor.log_prob(observation, batch["action"]) - batch["log_prob"]).exp()
        entropy = normal_entropy(actor.log_std())
        loss = clipped_surrogate(ratio, batch["advantage"], self.clip) - self.entropy * entropy
        return Loss(loss, {"actor_loss": loss, "entropy": entropy})

    @step_function
    def _value_loss(self, batch: TensorDictBase) -> Loss:
        loss = value_loss(self.agent.value(batch["observation"]), batch["value_target"])
        return Loss(loss, {"value_loss": loss})

    # ---- around the updates of one rollout ---------------------------------------------------------------------

    @torch.no_grad()
    def begin_rollout(self, rollout: TensorDictBase) -> TensorDict:
        """What the updates need of a rollout ``[N, T]``, as rows ``[N·T]``."""
        agent, observation, successor = self.agent, rollout["observation"], rollout["next"]
        terminated = successor["terminated"].bool()
        ended = terminated | successor["truncated"]
        reward = rollout["reward"]
        if self.reward_scaling == "dynamic":
            # one scale of the rewards of all processes, the same in each
            everyone, gathered = self.ranks.gather(reward), self.ranks.gather(ended)
            everyone, running = agent.reward_scale(everyone, gathered, self.running_return)
            reward = self.ranks.own(everyone)
            self.running_return.copy_(running)
        both = torch.stack((observation, successor["observation"]))
        value, next_value = agent.value(both).to(reward.dtype)  # mixed precision ends where rewards are summed up
        advantage, target = advantage_and_target(
            value, next_value, reward, terminated, ended, self.discount, self.gae_lambda
        )
        mean, log_std = agent.actor(observation.flatten(0, 1))
        rows = {
            "observation": observation.flatten(0, 1),
            "action": rollout["action"].flatten(0, 1),
            "value": value.flatten(),
            "value_target": target.flatten(),
            "mean": mean,
            "log_std": log_std.expand_as(mean),
        }
        rows["log_prob"] = agent.actor.log_prob(rows["observation"], rows["action"])
        combined = self._advantage(advantage.flatten(), rows)
        rows["advantage"] = normalized_advantage(combined, self.ranks.gather(combined))
        return TensorDict(rows, [len(mean)])

    @torch.no_grad()
    def end_rollout(self, rollout: TensorDictBase) -> None:
        """Logs how far the updates have moved the policy, and how well V knew the rollout before them."""
        actor, mean = self.agent.actor, rollout["mean"]
        new_mean, new_log_std = actor(rollout["observation"])
        ratio = (actor.log_prob(rollout["observation"], rollout["action"]) - rollout["log_prob"]).exp()
        metrics = {
            "kl": normal_divergence(mean, rollout["log_std"], new_mean, new_log_std).mean(),
            "clip_fraction": ((ratio - 1.0).abs() > self.clip).float().mean(),
            "explained_variance": explained_variance(rollout["value"], rollout["value_target"]),
            "std": new_log_std.exp().mean(),
            "std_max": new_log_std.exp().max(),
        }
        row = self.ranks.mean_row({name: float(value) for name, value in metrics.items()})
        returns = [i.last_return for i in self.rollouts.interactions if i.last_return is not None]
        if returns:
            row["last_episode_return"] = float(np.mean(returns))
        self.log_now({**row, "auxiliary_weight": self._auxiliary_weight()})

    def status(self) -> list[str]:
        parts = [f"β {self._auxiliary_weight():.2f}"] if self.auxiliary_advantage else []
        return [*parts, f"KL {self.display['kl']:.2g}"] if "kl" in self.display else parts

    def _auxiliary_weight(self) -> float:
        return linear_decay(self.env_steps, self.auxiliary.env_steps) if self.auxiliary_advantage else 0.0

    def _advantage(self, advantage: Tensor, rows: dict[str, Tensor]) -> Tensor:
        if not self.auxiliary_advantage:
            return advantage
        mean, log_std = cast(GaussianActor, self.reference)(rows["observation"])
        terms = log_density_terms(rows["action"], mean, log_std)
        scale = self.auxiliary.scale * self.ranks.gather(advantage).std()
        auxiliary = scale * auxiliary_advantage(terms, self.auxiliary.joint)
        return combined_advantage(advantage, auxiliary, self._auxiliary_weight(), self.auxiliary.pairwise)
