"""PEX: which policy acts, what learns from it, and what its checkpoints are (T60–T66)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Fit
from every_method import TASK, A, Networks, S, batches, built, noises

from o2o_lightning.data.module import OfflineData
from o2o_lightning.data.online import OnlineData
from o2o_lightning.engine.engine import Engine
from o2o_lightning.methods.iql import IQL
from o2o_lightning.methods.method import Moment
from o2o_lightning.methods.pex import PEX
from o2o_lightning.nn.actors import build_policy
from o2o_lightning.nn.policy_set import PolicySet
from o2o_lightning.phases.offline import Offline
from o2o_lightning.phases.online import Online


def pex(**options: Any) -> Any:
    torch.manual_seed(1)
    method = PEX(hidden=(8, 8), **options)
    method.build(TASK, Networks("offline", built("iql")))
    return method


def valued(method: Any, bonus: float) -> Any:
    """The method whose critics value π_θ's action ``bonus`` above π_β's, in every other row the other way round."""
    sign = torch.tensor([1.0, -1.0]).repeat(8)
    method.actor.values = lambda _, actions: torch.stack((bonus * sign, torch.zeros(16)))
    return method


def test_t60_the_offline_policy_learns_nothing_and_has_no_moments():
    method = pex()
    before = {name: value.clone() for name, value in method.offline_actor.state_dict().items()}
    learning = [p for part, _ in method.learners().values() for p in part.parameters()]
    adam = torch.optim.Adam(learning, 1e-2)
    for update in range(20):
        for loss in Engine(method).losses(Moment(update), batches(method), noises(method)):
            adam.zero_grad()
            loss.value.backward()
            adam.step()
    assert all(torch.equal(value, before[name]) for name, value in method.offline_actor.state_dict().items())
    assert not {*map(id, method.offline_actor.parameters())} & {*map(id, learning)}
    assert any(
        not torch.equal(p, q) for p, q in zip(method.learner.parameters(), pex().learner.parameters(), strict=True)
    )


@pytest.mark.parametrize(("kappa", "share"), [(0.0, 0.5), (10.0, 1 / (1 + math.exp(-1.0))), (1e6, 1.0)])
def test_t61_and_t63_the_choice_is_a_softmax_of_the_values(kappa: float, share: float):
    method = valued(pex(selection=kappa), 0.1)
    preferred = method.preference(*(torch.zeros(16, size) for size in (S, A, A)))
    torch.testing.assert_close(preferred[0], torch.tensor(share), rtol=1e-4, atol=0)
    torch.testing.assert_close(preferred[1], torch.tensor(1 - share), rtol=1e-4, atol=1e-6)


def test_t62_and_t65_each_row_chooses_and_the_learner_imitates_what_was_chosen():
    method, batch = valued(pex(selection=1e6), 1.0), batches(built("iql"))
    noise = noises(method)
    with torch.no_grad():
        base, sample = (
            method.offline_actor.mode(batch["observation"]),
            method.learner.sampled(batch["observation"], noise["policy"]),
        )
        action = torch.where(torch.tensor([True, False]).repeat(8)[:, None], sample, base)
        q = method.target_critic(batch["observation"], action).min(0).values
        weight = (10.0 * (q - method.value(batch["observation"]))).exp().clamp(max=100.0)
    loss = method.policy_step(batch, noise)
    expected = -(weight * method.learner.log_prob(batch["observation"], action)).mean()
    torch.testing.assert_close(loss.value, expected)
    assert float(loss.metrics["learner_share"].mean()) == 0.5
    (gradient,) = torch.autograd.grad(loss.value, [method.learner.body.linears[0].weight])
    assert gradient.any()
    for step in (method.value_step, method.critic_step):
        found = torch.autograd.grad(step(batch, noise).value, list(method.learner.parameters()), allow_unused=True)
        assert all(each is None for each in found)


def test_t64_a_new_learner_is_chosen_less_often_than_a_policy_that_the_critics_value():
    method = pex()
    batch = batches(method)
    optimizer = torch.optim.Adam(method.critic.parameters(), 1e-2)
    for _ in range(200):  # critics that value nearness to π_β's action
        action = torch.rand(16, A) * 2 - 1
        distance = (action - method.offline_actor.mode(batch["observation"])).square().sum(-1)
        optimizer.zero_grad()
        (method.critic(batch["observation"], action) + 3 * distance).square().sum().backward()
        optimizer.step()
    sample = method.learner.sampled(batch["observation"], torch.randn(16, A))
    base = method.offline_actor.mode(batch["observation"])
    assert float(method.preference(batch["observation"], base, sample).detach().mean()) < 0.5


def test_the_critics_are_the_sets_own_and_it_is_rebuilt_from_its_specification():
    method = pex()
    assert method.actor.critic is method.critic
    again = build_policy(method.actor.spec.to_dict())
    again.load_state_dict(method.actor.state_dict())
    assert isinstance(again, PolicySet)
    states = np.random.default_rng(0).normal(size=(32, S)).astype(np.float32)
    found = again.act(states)
    assert np.array_equal(found, method.actor.act(states))
    modes = [member.act(states) for member in again.members]
    values = [again.critic(torch.from_numpy(states), torch.from_numpy(mode)).min(0).values for mode in modes]
    better = torch.stack(values).argmax(0).numpy()
    np.testing.assert_allclose(found, np.stack(modes)[better, np.arange(32)], atol=1e-6)
    assert again.act(states[0]).shape == (A,)


def test_t66_nothing_learns_before_the_warm_up_has_ended(pendulum: str, fit: Fit):
    batch: dict[str, Any] = {"dataset": pendulum, "batch_size": 8, "eval_episodes": 1}
    before = fit(lambda: Offline(IQL(hidden=(8, 8))), lambda: OfflineData(**batch), 4)
    seen: list[dict[str, Any]] = []

    class Watched(PEX):
        def act(self, observation: Any, generator: Any) -> Any:
            seen.append({name: value.clone() for name, value in self.state_dict().items()})
            return super().act(observation, generator)

    online = Online(Watched(hidden=(8, 8)), str(before.checkpoint))
    fit(online, OnlineData(**batch, env_steps=12, warmup_steps=9))
    still = [all(torch.equal(value, seen[0][name]) for name, value in state.items()) for state in seen]
    assert still == [True] * 10 + [False] * 2 and online.updates == 3
