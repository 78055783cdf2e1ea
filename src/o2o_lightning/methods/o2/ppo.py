"""O2PPO: V fitted to the dataset's returns, then PPO with an auxiliary advantage (Eqs. 17-22)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from o2o_lightning.errors import UserError
from o2o_lightning.methods.method import Batch, Learners, Loss, Noise, Source, Task
from o2o_lightning.methods.o2.reference import Reference, Referenced
from o2o_lightning.methods.ppo import PPO, ValueMethod
from o2o_lightning.nn.critics import ValueNet
from o2o_lightning.nn.normalizer import RewardScale
from o2o_lightning.objectives.diagnostics import bellman_residual
from o2o_lightning.objectives.ppo import auxiliary_advantage, combined_advantage, log_density_terms, value_loss
from o2o_lightning.objectives.returns import cut_returns, discounted_returns
from o2o_lightning.objectives.schedules import linear_decay


@dataclass(frozen=True)
class Auxiliary:
    """O2PPO's auxiliary advantage.

    Attributes:
        scale: α; its largest value is half of it, in deviations of the rollout's own advantage.
        env_steps: environment steps over which its weight β falls linearly from 1 to 0.
        joint: floor the sum over action dimensions, as the official code, instead of each dimension (D19).
        pairwise: each sample's advantage with every sample's auxiliary term, as the official code (D18).
    """

    scale: float = 2.0
    env_steps: int = 250_000
    joint: bool = False
    pairwise: bool = False


class Reevaluate(ValueMethod):
    """V fitted to the discounted returns of the dataset.

    It approximates the value of the policy that made the data, not of π_off: the auxiliary advantage of the online
    phase makes up for the difference. Where a time limit or the end of the recording cut an episode, V itself stands
    for what was cut off.

    Learns: V, from random weights. Frozen: π_off. Hands on: both, and the running scale of rewards.

    Args:
        bootstrap_tails: False: a return ends where the episode was cut, as Uni-O4; values near a cut are too small.
        leak_returns: True lets the return of a time-limited episode run into the next one, as the official code does
            by a misspelt key, and nothing is bootstrapped (D22).
        hidden: widths of V.
    """

    name: ClassVar[str] = "o2ppo"
    needs: ClassVar[tuple[str, ...]] = ("return_to_go",)
    magnitudes: ClassVar[tuple[str, ...]] = ("value",)
    value_lr: float = 1e-4
    bootstrap_tails: bool = True
    leak_returns: bool = False
    hidden: Sequence[int] = (256, 256, 256)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bootstrap_tails and not self.leak_returns:
            self.needs = ("tail",)  # type: ignore[misc]

    def build(self, task: Task, source: Source | None = None) -> None:
        assert source is not None
        actor = source.build_actor().requires_grad_(False)
        self.take(actor, ValueNet(task.observation_dim, self.hidden, "tanh"))
        self.register_buffer("tails", None, persistent=False)

    def learners(self) -> Learners:
        return {"value": (self.value, self.value_lr)}

    def returns_to_go(self, reward: Tensor, terminated: Tensor, truncated: Tensor) -> Tensor:
        end = terminated if self.leak_returns else terminated | truncated
        return discounted_returns(self._scaled(reward, terminated), end, self.discount)

    def take_tails(
        self, observation: Tensor, reward: Tensor, terminated: Tensor, truncated: Tensor, known: Tensor
    ) -> dict[str, Tensor]:
        """Columns ``[N]`` by name, beside ``tail``, the number of a row's episode; see :func:`.returns.cut_returns`.

        ``observation`` ``[E, S]``: the last known state of each episode, normalised.
        """
        self.tails = observation
        returns, weight = cut_returns(self._scaled(reward, terminated), terminated, truncated, known, self.discount)
        return {"return_to_go": returns, "tail_weight": weight}

    def _scaled(self, reward: Tensor, terminated: Tensor) -> Tensor:
        if self.reward_scaling == "none":
            return reward
        # As the official code, a time-out does not restart the running return; halfcheetah never terminates. A fit that
        # is started or resumed begins its statistics anew, and so ends with the same ones.
        self.reward_scale = RewardScale(self.discount).to(self.reward_scale.count.device)
        running = torch.zeros(1, dtype=torch.float64)
        scaled: Tensor = self.reward_scale(reward.unsqueeze(0), terminated.unsqueeze(0), running)[0].squeeze(0)
        return scaled

    @torch.no_grad()
    def target(self, batch: Batch) -> Tensor:
        """What V is fitted to, ``[B]``."""
        target: Tensor = batch["return_to_go"]
        if self.tails is not None:
            target = target + batch["tail_weight"] * self.value(self.tails[batch["tail"].long()])
        return target

    def step(self, batch: Batch, noise: Noise) -> Loss:
        value, target = self.value(batch["observation"]), self.target(batch)
        loss = value_loss(value, target)
        return Loss(loss, {"value_loss": loss, "value": value, "return_to_go": target})

    def curves(self, batch: Batch) -> dict[str, Tensor]:
        value = self.value(batch["observation"])
        return {"value": value.abs().mean(), "residual": bellman_residual(value, self.target(batch))}


class Online(Referenced, PPO):
    """PPO drawn to the best policy so far, less and less, by an auxiliary advantage.

    Learns: actor and V. Frozen: π_ref between swaps, and π_off. O2PPO has no alignment phase and no multiplier.
    Without ``auxiliary_advantage`` it is plain PPO: "direct" fine-tuning, or from scratch when no checkpoint is given.

    Args:
        auxiliary_advantage: False leaves PPO's own advantage alone.
        constraint: False keeps π_ref where it starts (ablation).
        auxiliary: see :class:`Auxiliary`.
    """

    name: ClassVar[str] = "o2ppo"
    shares_episodes: ClassVar[bool] = False
    auxiliary_advantage: bool = True
    constraint: bool = True
    auxiliary: Auxiliary = Auxiliary()
    reference: Reference = Reference(period=2500)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reference.threshold_scale != 1.0:
            raise UserError("--model.reference.threshold_scale: O2PPO has no threshold. Leave it out.")
        if not self.constraint:
            self.reference = Reference("frozen", self.reference.start, self.reference.period)

    @property
    def follows(self) -> bool:
        return self.auxiliary_advantage

    def build(self, task: Task, source: Source | None = None) -> None:
        super().build(task, source)
        self.take_reference()

    def auxiliary_weight(self, env_steps: int) -> float:
        """β, which falls linearly to 0."""
        return linear_decay(env_steps, self.auxiliary.env_steps) if self.auxiliary_advantage else 0.0

    def combined_advantage(self, advantage: Tensor, rows: dict[str, Tensor], env_steps: int) -> Tensor:
        if not self.auxiliary_advantage:
            return advantage
        mean, log_std = self.reference_policy(rows["observation"])
        terms = log_density_terms(rows["action"], mean, log_std)
        scale = self.auxiliary.scale * self.ranks.gather(advantage).std()
        auxiliary = scale * auxiliary_advantage(terms, self.auxiliary.joint)
        return combined_advantage(advantage, auxiliary, self.auxiliary_weight(env_steps), self.auxiliary.pairwise)
