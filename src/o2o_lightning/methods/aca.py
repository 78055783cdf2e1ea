"""ACA (Yu and Zhang 2023, https://arxiv.org/abs/2306.00356): critics rebuilt from the offline policy's log-density."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from o2o_lightning.errors import UserError
from o2o_lightning.methods.method import Batch, Follow, Learners, Loss, Moment, Noise, Source, Task, Updates
from o2o_lightning.methods.rlpd import RLPD
from o2o_lightning.nn.critics import Critics
from o2o_lightning.nn.gaussian import HALF_LOG_TWO_PI
from o2o_lightning.nn.squashed_gaussian import SquashedGaussian
from o2o_lightning.objectives.bellman import critic_loss, least, td_target


class TwoCritics(RLPD):
    """SAC with two critics, one update of all a step, an entropy of −A.

    Args:
        hidden, critic_hidden: widths of new networks, and of the baselines.
    """

    layer_norm: bool = False
    critics: int = 2
    subset: int | None = None
    policy_every: int = 1
    target_entropy: float = -1.0
    hidden: Sequence[int] = (256, 256)
    critic_hidden: Sequence[int] = (256, 256)

    def baselines(self, task: Task) -> Critics:
        """New state values Z_i(s): critics of an action without dimensions."""
        return Critics(task.observation_dim, 0, self.critic_hidden, self.layer_norm, self.critics)


class Offline(TwoCritics):
    r"""SAC that also imitates the data, and baselines Z_i with which :math:`\log\pi(a|s) + Z_i(s)` is a fixed point.

    Args:
        q_weight: of SAC's loss, divided by mean\\|Q\\|, beside the likelihood of the data's actions.
        baseline_lr: Adam's rate of Z.
    """

    name: ClassVar[str] = "aca"
    policy_value: Any = "least"
    q_weight: float = 30.0
    baseline_lr: float = 3e-4

    def build(self, task: Task, source: Source | None = None) -> None:
        super().build(task, source)
        self.baseline = self.baselines(task)

    def learners(self) -> Learners:
        return {**super().learners(), "baseline": (self.baseline, self.baseline_lr)}

    def update(self, moment: Moment) -> Updates:
        yield self.critic_step
        yield self.baseline_step
        yield self.policy_step
        yield Follow(self.target_critic, self.critic, self.polyak)

    def baseline_step(self, batch: Batch, noise: Noise) -> Loss:
        observation, successor = batch["observation"], batch["next", "observation"]
        with torch.no_grad():
            log_prob = self.actor.distribution(observation).log_prob(batch["action"])
            _, following = self.actor.distribution(successor).sample(noise["target"])
            value = following + least(self.state_values(successor)) - self.log_alpha.exp() * following
            target = td_target(batch["reward"], batch["next", "terminated"], value, self.discount)
        loss = critic_loss(log_prob + self.state_values(observation), target)
        return Loss(loss, {"baseline_loss": loss})

    def state_values(self, observation: Tensor) -> Tensor:
        """Z ``[N, B]``."""
        values: Tensor = self.baseline(observation, observation[..., :0])
        return values

    def policy_step(self, batch: Batch, noise: Noise) -> Loss:
        found = super().policy_step(batch, noise)
        loss, metrics = found.value, found.metrics
        scale = self.q_weight / self.ranks.mean(metrics["q_policy"].detach().abs().mean())
        likelihood = self.actor.distribution(batch["observation"]).log_prob(batch["action"]).mean()
        # the temperature's loss, which the sum has beside the actor's, reaches no other parameter and keeps its weight
        actor_loss = metrics["actor_loss"]
        return Loss(loss + (scale - 1.0) * actor_loss - likelihood, {**metrics, "log_prob_data": likelihood})


class ACA(TwoCritics):
    r"""SAC whose critics are :math:`Q_i(s, a) = R_i(s, a) + w_t\,\widetilde{\log\pi_0}(a|s)`, R_i = Z_i at first.

    So the first greedy action is the offline policy's own, whatever the offline critics have thought of others.

    Args:
        bound_width: β: the log-density is clipped softly from below at its value β deviations from the mean.
        fade_updates, weight_floor: w falls linearly from 1 towards 0 in so many updates, but to no less than the floor.
        actor_grad_clip: largest norm of the actor's gradient.
    """

    name: ClassVar[str] = "aca"
    policy_value: Any = "least"
    needs_source: ClassVar[bool] = True
    bound_width: float = 7.0
    fade_updates: int = 40_000
    weight_floor: float = 0.5
    actor_grad_clip: float = 0.25

    def build(self, task: Task, source: Source | None = None) -> None:
        if source is None or not source.has("baseline"):
            raise UserError(
                "online=aca: it starts from the state baselines of offline=aca. Run `--phase all online=aca`."
            )
        baseline: Critics = source.load(self.baselines(task), "baseline")
        actor, critic = source.build_actor(), self.fresh(task)[1]
        self.take(actor, rebuilt(baseline, critic))
        self.register_buffer("weight_now", torch.tensor(1.0))

    def gradient_limits(self) -> dict[str, float]:
        return {"actor": self.actor_grad_clip}

    def schedules(self, moment: Moment) -> dict[str, float]:
        return {"weight_now": max(1.0 - moment.update / self.fade_updates, self.weight_floor)}

    def valued(self, critic: Critics, observation: Tensor, action: Tensor, frozen: bool = False) -> Tensor:
        policy = self.offline_actor.distribution(observation)
        log_density: Tensor = self.weight_now * soft_log_density(policy, action, self.bound_width)
        values: Tensor = critic(observation, action, frozen)
        return values + log_density


def soft_log_density(policy: SquashedGaussian, action: Tensor, width: float) -> Tensor:
    r""":math:`\mathrm{softplus}(\log\pi_0 - c) + c` ``[B]``, c the Gaussian's log-density at μ ± ``width``·σ (D65)."""
    floor = (-0.5 * width**2 - policy.log_std - HALF_LOG_TWO_PI).sum(-1)
    return F.softplus(policy.log_prob(action) - floor) + floor


@torch.no_grad()
def rebuilt(baseline: Critics, critic: Critics) -> Critics:
    """``critic`` as a copy of the ``baseline``, its first layer blind to the action."""
    state = {name: value.clone() for name, value in baseline.state_dict().items()}
    for i in range(critic.spec.count):
        first = f"members.{i}.linears.0.weight"
        state[first] = torch.cat((state[first], state[first].new_zeros(len(state[first]), critic.spec.action_dim)), 1)
    critic.load_state_dict(state)
    return critic
