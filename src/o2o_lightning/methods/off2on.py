"""Off2On (Lee et al. 2021, https://arxiv.org/abs/2107.00591): a pessimistic ensemble, and a replay that it balances."""

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from o2o_lightning.errors import UserError, at_least
from o2o_lightning.methods.actor_critic import part
from o2o_lightning.methods.cql import CQL
from o2o_lightning.methods.method import Batch, Draws, Follow, Learners, Loss, Moment, Noise, Source, Task, Updates
from o2o_lightning.methods.sac import SAC, Draw
from o2o_lightning.nn.critics import Critics
from o2o_lightning.nn.mixture import Mixture
from o2o_lightning.nn.mlp import MLP
from o2o_lightning.nn.squashed_gaussian import SquashedGaussian
from o2o_lightning.objectives.bellman import td_target
from o2o_lightning.objectives.density_ratio import balanced_priority, jensen_shannon_loss, tempered
from o2o_lightning.objectives.ensembles import members_least
from o2o_lightning.objectives.sac import soft_policy_loss

HEADS: dict[str, Callable[[Tensor], Tensor]] = {"softplus": F.softplus, "relu": F.relu}
AT_ONE = {"softplus": 0.5413248546, "relu": 1.0}  # where the head gives 1


class Offline(CQL):
    """Agents of CQL that never meet, each with its own networks, noise, and rows of every batch.

    Args:
        members: how many agents; a batch has the rows of all.
    """

    name: ClassVar[str] = "off2on"
    actor_kind: ClassVar[str | None] = Mixture.kind
    members: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("--model.members", self.members, 1)

    def build(self, task: Task, source: Source | None = None) -> None:
        options = {field.name: getattr(self, field.name) for field in fields(CQL)}
        self.agents: list[CQL] = nn.ModuleList(CQL(**options) for _ in range(self.members))  # type: ignore[assignment]
        for agent in self.agents:
            agent.build(task)
        self.actor = Mixture([agent.actor for agent in self.agents])
        self.critic = Critics(*task.sizes, self.critic_hidden, self.layer_norm, self.members * self.critics)
        self.critic.members = nn.ModuleList(member for agent in self.agents for member in agent.critic.members)

    def learners(self) -> Learners:
        return {f"{name}_{i}": pair for i, agent in enumerate(self.agents) for name, pair in agent.learners().items()}

    def noise(self, shape: tuple[int, ...]) -> Draws:
        own = super().noise((shape[0] // self.members, *shape[1:]))
        return {f"{name}_{i}": form for i in range(self.members) for name, form in own.items()}

    def update(self, moment: Moment) -> Updates:
        yield self.step
        for agent in self.agents:
            yield Follow(agent.target_critic, agent.critic, self.polyak)

    def step(self, batch: Batch, noise: Noise) -> Loss:
        found = []
        for i, agent in enumerate(self.agents):
            own = {name.removesuffix(f"_{i}"): drawn for name, drawn in noise.items() if name.endswith(f"_{i}")}
            found.append(agent.step(part(batch, i, self.members), own))
        metrics = {name: torch.stack([loss.metrics[name].mean() for loss in found]) for name in found[0].metrics}
        return Loss(torch.stack([loss.value for loss in found]).sum(), metrics)


class Off2On(SAC):
    r"""SAC of the members as one policy, each pair of critics on its own target; rows likely online are drawn more.

    A batch has three equal parts: rows drawn by priority, of which everything but w learns, then rows of the dataset
    and online rows, for the density ratio w alone. Every loss is formed before any network moves.

    Args:
        ratio_lr: Adam's rate of w.
        ratio_hidden: its widths.
        ratio_head: what keeps w positive: ``softplus``, or ``relu`` as in the code, which may die for ever (D54).
        ratio_temperature: T of a row's priority :math:`w^{1/T}`.
    """

    name: ClassVar[str] = "off2on"
    actor_kind: ClassVar[str | None] = Mixture.kind
    needs: ClassVar[tuple[str, ...]] = ("priority",)
    needs_critic: ClassVar[bool] = True
    needs_source: ClassVar[bool] = True
    carries_moments: ClassVar[tuple[str, ...]] = ()
    temperature: float = 1.0
    ratio_lr: float = 3e-4
    ratio_hidden: Sequence[int] = (256, 256)
    ratio_head: Literal["softplus", "relu"] = "softplus"
    ratio_temperature: float = 5.0

    def build(self, task: Task, source: Source | None = None) -> None:
        super().build(task, source)
        self.ratio = MLP(sum(task.sizes), self.ratio_hidden, 1)
        nn.init.constant_(self.ratio.linears[-1].bias, AT_ONE[self.ratio_head])  # type: ignore[arg-type]

    def take(self, actor: Any, critic: Critics) -> None:
        super().take(actor, critic)
        if critic.spec.count % len(actor.members):
            counts = f"{critic.spec.count} critics can't be shared out among {len(actor.members)} policies"
            raise UserError(f"off2on: {counts}. Start from offline=off2on.")

    def take_targets(self, source: Source) -> None:
        """The targets begin as copies of the critics (D56)."""

    def learners(self) -> Learners:
        return {**super().learners(), "ratio": (self.ratio, self.ratio_lr)}

    def noise(self, shape: tuple[int, ...]) -> Draws:
        return super().noise((shape[0] // 3, *shape[1:]))

    def step(self, batch: Batch, noise: Noise) -> Loss:
        drawn, *others = (part(batch, i, 3) for i in range(3))
        found = super().step(drawn, noise)
        offline, online = map(self.density_ratio, others)
        ratio_loss = jensen_shannon_loss(offline, online)
        with torch.no_grad():
            ratio = self.density_ratio(drawn)
            mean = self.ranks.mean(tempered(offline, self.ratio_temperature).mean())
            priority = balanced_priority(ratio, mean, self.ratio_temperature)
        own = {"ratio_loss": ratio_loss, "ratio": ratio, "priority": priority}
        return Loss(found.value + ratio_loss, found.metrics | own)

    def density_ratio(self, batch: Batch) -> Tensor:
        """The ratio w ``[B]`` of a batch's transitions."""
        return HEADS[self.ratio_head](self.ratio(torch.cat((batch["observation"], batch["action"]), -1)).squeeze(-1))

    def target(self, batch: Batch, policy: SquashedGaussian, noise: Noise) -> tuple[Tensor, Tensor]:
        """What each critic should say ``[E, B]``, by its own member's least target, and log π ``[B]``."""
        action, log_prob = policy.sample(noise["target"])
        own = self.own_least(self.target_critic(batch["next", "observation"], action))
        price = self.log_alpha.detach().exp() * log_prob
        target = td_target(batch["reward"], batch["next", "terminated"], own - price, self.discount)
        return target.repeat_interleave(self.critic.spec.count // len(target), 0), log_prob

    def draw(self, observation: Tensor, policy: SquashedGaussian, noise: Tensor) -> Draw:
        action, log_prob = policy.sample(noise)
        q = self.own_least(self.critic(observation, action, frozen=True)).mean(0)
        return Draw(action, log_prob, q, soft_policy_loss(q[None], log_prob, self.log_alpha.detach().exp()))

    def own_least(self, q: Tensor) -> Tensor:
        """The least value of each member's own critics: ``[E, B] → [members, B]``."""
        return members_least(q, len(self.actor.members))
