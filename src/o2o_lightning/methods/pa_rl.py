"""PA-RL (Mark et al. 2024, https://arxiv.org/abs/2412.06685): any policy imitates what critics like better."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from o2o_lightning.errors import UserError, check_subset
from o2o_lightning.methods.actor_critic import ActorCritic
from o2o_lightning.methods.method import (
    Batch,
    Draws,
    Follow,
    Loss,
    Moment,
    Noise,
    Normal,
    Source,
    Task,
    Uniform,
    Updates,
)
from o2o_lightning.nn.actor import FloatArray
from o2o_lightning.nn.critics import Critics
from o2o_lightning.objectives.action_search import best_actions
from o2o_lightning.objectives.bellman import critic_loss, td_target
from o2o_lightning.objectives.cql import conservative_value
from o2o_lightning.objectives.distributional import two_hot_loss
from o2o_lightning.objectives.ensembles import drawn_members, subset_least
from o2o_lightning.objectives.returns import calibration_returns


class PARL(ActorCritic):
    """Actions are drawn of the policy, the best of them climb the critics, and the policy is fitted to what they reach.

    Acts by a softmax of the optimised actions' values; what is evaluated is the policy itself.

    Args:
        candidates, kept: actions drawn in each state, and how many of them climb.
        ascent_steps, ascent_rate: gradient steps on an action, and their size.
        spread, selection: deviation of a deterministic policy's candidates; κ of the softmax that acts.
        conservative_weight, samples: Cal-QL's weight, and actions of each of its three sources.
        critics, subset, critic_hidden: how many, how many drawn ones bound each target, and widths of new ones.
        support: lowest and highest value and bins of distributional critics; None for plain ones.
        failure_reward, new_critics: as Cal-QL's; leave a checkpoint's critics where they are.
        policy_every: critic updates for one of the policy; 0 leaves it as it is.
        actor_lr, critic_lr, discount, polyak: Adam's rates, γ, and the targets' rate.
    """

    name: ClassVar[str] = "pa_rl"
    needs: ClassVar[tuple[str, ...]] = ("return_to_go",)
    makes_critic: ClassVar[bool] = True
    needs_source: ClassVar[bool] = True
    carries_moments: ClassVar[tuple[str, ...]] = ()  # D90
    magnitudes: ClassVar[tuple[str, ...]] = ("q",)
    candidates: int = 32
    kept: int = 10
    ascent_steps: int = 10
    ascent_rate: float = 3e-4
    spread: float = 0.1
    selection: float = 1.0
    conservative_weight: float = 0.005
    samples: int = 10
    critics: int = 10
    subset: int = 2
    support: tuple[float, float, int] | None = None
    failure_reward: float | None = None
    new_critics: bool = False
    policy_every: int = 1
    actor_lr: float = 3e-4
    critic_lr: float = 3e-4
    discount: float = 0.99
    polyak: float = 0.005
    critic_hidden: Sequence[int] = (256, 256, 256)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= min(self.kept, self.samples) <= max(self.kept, self.samples) <= self.candidates:
            raise UserError(f"--model.candidates {self.candidates}: kept and samples are 1 to all of them. Draw more.")

    def build(self, task: Task, source: Source | None = None) -> None:
        assert source is not None
        if source.has("critic") and not self.new_critics:
            super().build(task, source)
        else:
            self.take(source.build_actor(), Critics(*task.sizes, self.critic_hidden, True, self.critics, self.support))
        check_subset(self.subset, self.critic.spec.count)

    def noise(self, shape: tuple[int, ...]) -> Draws:
        many, uniform = Normal((self.candidates, *shape)), Uniform((self.samples, *shape))
        return {"subset": Uniform((self.critic.spec.count,)), "uniform": uniform, "current": many, "following": many}

    def update(self, moment: Moment) -> Updates:
        yield self.critic_step
        yield Follow(self.target_critic, self.critic, self.polyak)
        if self.policy_every and (moment.update + 1) % self.policy_every == 0:
            yield self.policy_step

    def critic_step(self, batch: Batch, noise: Noise) -> Loss:
        observation, successor = batch["observation"], batch["next", "observation"]
        with torch.no_grad():
            action = self.optimised(successor, noise["following"])[0][0]
            members = drawn_members(noise["subset"], self.subset, False, self.critic.spec.count)
            value = subset_least(self.target_critic(successor, action), members)
            target = td_target(batch["reward"], batch["next", "terminated"], value, self.discount)
            ends = (observation, noise["current"]), (successor, noise["following"])
            policy = torch.cat([self.actor.candidates(s, drawn[: self.samples], self.spread) for s, drawn in ends])
        q = self.critic(observation, batch["action"])
        td_loss = critic_loss(q, target)
        if self.critic.support is not None:
            td_loss = two_hot_loss(self.critic.logits(observation, batch["action"]), target, self.critic.support)
        bounded = torch.maximum(self.valued(observation, policy), batch["return_to_go"])
        others = torch.cat((self.valued(observation, noise["uniform"]), bounded, q[:, None]), 1)
        gap = (conservative_value(others, None) - q).mean()
        metrics = {"critic_loss": td_loss, "conservative_gap": gap, "q": q, "target": target}
        return Loss(td_loss / len(q) + self.conservative_weight * gap, metrics)

    def policy_step(self, batch: Batch, noise: Noise) -> Loss:
        observation = batch["observation"]
        actions, values = self.optimised(observation, noise["current"])
        loss = self.actor.misfit(observation, actions[0]).mean()
        return Loss(loss, {"actor_loss": loss, "q_policy": values[0]})

    @torch.no_grad()
    def optimised(self, observation: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The policy's best actions after their climb, the best first, and their values: ``[kept, B, …]``."""
        drawn = self.actor.candidates(observation, noise, self.spread)
        climb = self.kept, self.ascent_steps, self.ascent_rate
        return best_actions(lambda at: self.valued(observation, at, frozen=True).mean(0), drawn, *climb)

    def valued(self, observation: Tensor, at: Tensor, frozen: bool = False) -> Tensor:
        """Values ``[E, N, B]`` of actions ``[N, B, A]``."""
        return self.critic(observation.expand(len(at), *observation.shape), at, frozen)  # type: ignore[no-any-return]

    def curves(self, batch: Batch) -> dict[str, Tensor]:
        return {"q": self.critic(batch["observation"], batch["action"]).mean(0).abs().mean()}

    def act(self, observation: FloatArray, generator: np.random.Generator) -> FloatArray:
        noise = generator.standard_normal((self.candidates, 1, self.actor.spec.action_dim), np.float32)
        device = next(self.critic.parameters()).device
        actions, values = self.optimised(*(torch.from_numpy(x).to(device) for x in (observation[None], noise)))
        chances = (self.selection * values[:, 0]).softmax(0).double().cumsum(0)
        chosen = int((chances < float(generator.uniform())).sum().clamp(max=self.kept - 1))
        return actions[chosen, 0].cpu().numpy()

    def returns_to_go(self, reward: Tensor, terminated: Tensor, truncated: Tensor) -> Tensor:
        return calibration_returns(reward, terminated | truncated, self.discount, self.failure_reward)
