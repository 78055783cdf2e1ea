"""RLPD: its losses against the plain implementation, and what tells it from SAC (T91–T96)."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import reference_sac as plainly
import torch
from by_hand import HIDDEN, A, S, transitions
from by_hand import ready as by_hand_ready
from sac_by_hand import assert_equal, assert_same, draw, noise_of, of_actor, of_critic, of_scalar, plain, separately
from test_phases_replay import EMBEDDED, MARK, half, store_of
from torch import Tensor
from torch.nn import functional as F

from o2o_lightning.data.online import OnlineData
from o2o_lightning.engine.engine import Engine
from o2o_lightning.errors import UserError
from o2o_lightning.methods.method import Follow, Moment
from o2o_lightning.methods.rlpd import RLPD
from o2o_lightning.nn.critics import Critics
from o2o_lightning.objectives.ensembles import drawn_members, subset_least
from o2o_lightning.phases.online import Online
from o2o_lightning.seeds import environment_seed

SIZES: dict[str, Any] = {"hidden": HIDDEN, "critic_hidden": HIDDEN, "critics": 4, "policy_every": 2}


def ready(seed: int = 0, **options: Any) -> Any:
    return by_hand_ready(RLPD(**SIZES | options), seed)


def values(critics: list[Any], s: Tensor, a: Tensor) -> Tensor:
    return torch.stack([plainly.q_of(critic, s, a) for critic in critics])


@pytest.mark.parametrize("entropy_backup", [True, False])
@pytest.mark.parametrize(("replace", "policy_value"), [(False, "mean"), (True, "least")])
def test_every_loss_is_the_textbooks(entropy_backup: bool, replace: bool, policy_value: Any):
    method = ready(entropy_backup=entropy_backup, replace=replace, policy_value=policy_value)
    batch, noise = draw(), noise_of(method)
    nets = plain(method, noise)
    alpha, s = nets.log_alpha.detach().exp(), batch["s"]
    ranks = noise["subset"].tolist()
    pair = [int((u + 1) / 2 * 4) for u in ranks] if replace else sorted(range(4), key=ranks.__getitem__)[:2]
    a2, log_prob2 = nets.actor.draw(batch["s2"], noise["target"])
    value = torch.minimum(*(plainly.q_of(nets.target_critic[i], batch["s2"], a2) for i in pair))
    y = (batch["r"] + 0.99 * (1 - batch["d"]) * (value - entropy_backup * alpha * log_prob2)).detach()
    critic_loss = sum(F.mse_loss(plainly.q_of(critic, s, batch["a"]), y) for critic in nets.critic) / 4
    a, log_prob = nets.actor.draw(s, noise["policy"])
    q = values(nets.critic, s, a)
    actor_loss = (alpha * log_prob - (q.mean(0) if policy_value == "mean" else q.min(0).values)).mean()
    temperature_loss = -nets.log_alpha * (log_prob.detach().mean() - A / 2)

    found = method.critic_step(transitions(batch), noise)
    assert_equal(found.value, critic_loss)
    assert_same(gradients(method, found.value), separately(nets, critic_loss, of_critic))
    found = method.policy_step(transitions(batch), noise)
    assert_equal(found.value, actor_loss + temperature_loss)
    expected = separately(nets, actor_loss, of_actor) | of_scalar(temperature_loss, nets.log_alpha, "log_alpha")
    assert_same(gradients(method, found.value), expected)


def gradients(method: Any, loss: Tensor) -> dict[str, Tensor]:
    method.zero_grad(set_to_none=True)
    loss.backward()
    return {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}


def test_t92_two_drawn_critics_differ_unless_they_may_be_the_same():
    noise = torch.rand(20_000, 10) * 2 - 1
    distinct = torch.stack([drawn_members(row, 2, replace=False, count=10) for row in noise[:2000]])
    assert bool((distinct[:, 0] != distinct[:, 1]).all())
    assert {*distinct.flatten().tolist()} == {*range(10)}
    equal = torch.stack([drawn_members(row[:2], 2, replace=True, count=10) for row in noise])
    assert float((equal[:, 0] == equal[:, 1]).float().mean()) == pytest.approx(0.1, abs=0.01)


def test_t101_the_mean_of_a_random_pairs_minimum_is_the_closed_form():
    q = torch.linspace(-1.0, 2.0, 5).square().sort().values
    pairs = [*itertools.product(range(5), repeat=2)]
    least = {pair: float(subset_least(q, torch.tensor(pair))) for pair in pairs}
    without = sum(value for (i, j), value in least.items() if i != j) / 20
    assert without == pytest.approx(sum(float(q[k]) * 2 * (4 - k) / 20 for k in range(5)))
    assert sum(least.values()) / 25 == pytest.approx(sum(float(q[k]) * (2 * (4 - k) + 1) / 25 for k in range(5)))


def test_t93_twenty_critic_steps_come_for_one_of_the_policy():
    method = RLPD(**SIZES | {"policy_every": 20})
    kinds = [item for i in range(40) for item in order(method, i)]
    assert kinds.count("critic_step") == kinds.count("follow") == 40 and kinds.count("policy_step") == 2
    assert order(method, 19) == ["critic_step", "follow", "policy_step"]


def order(method: Any, update: int) -> list[str]:
    method.critic = method.target_critic = None
    return ["follow" if isinstance(item, Follow) else item.__name__ for item in method.update(Moment(update))]


def test_t95_a_critic_with_layer_norm_is_bounded_however_far_the_action():
    torch.manual_seed(0)
    critic = Critics(S, A, (16,), layer_norm=True, count=3)
    far = critic(torch.randn(64, S) * 1e6, torch.randn(64, A) * 1e6)
    for member, q in zip(critic.members, far, strict=True):
        norm, (weight, bias) = member.norms[-1], (p.detach() for p in member.linears[-1].parameters())
        bound = weight.norm() * (4.0 * norm.weight.detach().abs().max() + norm.bias.detach().norm()) + bias.abs()
        assert float(q.detach().abs().max()) <= float(bound) * (1 + 1e-5)


def test_t96_the_entropy_in_the_target_is_all_that_its_switch_changes():
    with_it, without = ready(entropy_backup=True), ready(entropy_backup=False)
    batch, noise = draw(), noise_of(with_it)
    found = [method.critic_step(transitions(batch), noise).metrics["target"] for method in (with_it, without)]
    log_prob = plain(with_it, noise).actor.draw(batch["s2"], noise["target"])[1]
    assert_equal(found[1] - found[0], 0.99 * (1 - batch["d"]) * with_it.log_alpha.exp() * log_prob)


def test_the_policy_moves_behind_the_critics_and_sees_them_moved():
    method = ready()
    before = method.critic(torch.zeros(1, S).double(), torch.zeros(1, A).double()).detach()
    steps = Engine(method).losses(Moment(1), transitions(draw()), noise_of(method))
    next(steps).value.backward()
    with torch.no_grad():
        for parameter in method.critic.parameters():
            parameter -= parameter.grad
    assert not torch.equal(method.critic(torch.zeros(1, S).double(), torch.zeros(1, A).double()), before)
    assert "actor_loss" in next(steps).metrics


def test_of_several_actions_the_target_takes_the_one_of_the_highest_value():
    method, batch = ready(target_samples=3, entropy_backup=False), draw()
    noise = noise_of(method)
    nets, found = plain(method, noise), []
    for each in noise["target"]:
        action, _ = nets.actor.draw(batch["s2"], each)
        q = values(nets.target_critic, batch["s2"], action)
        found.append(torch.minimum(*q[noise["subset"].argsort()[:2]]))
    y = batch["r"] + 0.99 * (1 - batch["d"]) * torch.stack(found).amax(0)
    assert_equal(method.critic_step(transitions(batch), noise).metrics["target"], y.detach())


def test_more_drawn_critics_than_there_are_is_refused():
    with pytest.raises(UserError, match=r"--model\.subset 5: there are 4 critics"):
        ready(subset=5)


def test_t91_every_batch_has_as_many_offline_as_online_rows():
    buffer, generator = half(store_of(EMBEDDED)), torch.Generator().manual_seed(0)
    for _ in range(20):  # what RLPD slices is drawn slice by slice
        rewards = buffer.layout.columns(buffer.rows(16, generator))["reward"]
        assert int((rewards >= MARK).sum()) == 8


def test_t94_before_the_first_update_actions_are_uniform_and_nothing_learns(fit: Any, pendulum: str):
    asked = []

    class Watched(RLPD):
        def act(self, observation: Any, generator: Any) -> Any:
            asked.append(online.updates)
            return super().act(observation, generator)

    online = Online(Watched(**SIZES))
    data = OnlineData(dataset=pendulum, env_steps=16, warmup_steps=10, utd=2, batch_size=8, eval_episodes=1)
    run = fit(online, data)
    assert asked == [2, 4, 6, 8, 10] and run.module.updates == 12
    actions = data.interaction.buffer["action"][:11]
    generator = np.random.default_rng(environment_seed(0))
    assert actions.flatten().tolist() == [float(np.float32(generator.uniform(-1, 1, 1)[0])) for _ in range(11)]
