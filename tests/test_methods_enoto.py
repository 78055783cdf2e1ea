"""ENOTO: the mean of all pairs' minima, what is doubted, what is tried (T128–T130). SO2: its perturbed values."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import HIDDEN, A, S, draw, noise_of, ready, transitions
from test_methods_rivals_gradients import assert_descends, squashed

from o2o_lightning.methods.enoto import ENOTO
from o2o_lightning.methods.method import Moment
from o2o_lightning.methods.so2 import SO2
from o2o_lightning.objectives.ensembles import all_pairs_least, doubt_weight

B = 24


def enoto(**options: Any) -> Any:
    return ready(ENOTO(**{"hidden": HIDDEN, "critic_hidden": HIDDEN, "critics": 4} | options))


@pytest.mark.parametrize("count", [2, 3, 10])
def test_t128_the_mean_of_all_pairs_minima_is_the_closed_form_between_the_least_and_the_mean(count: int) -> None:
    q = torch.randn(count, B, generator=torch.Generator().manual_seed(count)).double()
    pairs = [torch.minimum(q[i], q[j]) for i, j in itertools.combinations(range(count), 2)]
    found = all_pairs_least(q)
    torch.testing.assert_close(found, torch.stack(pairs).mean(0))
    assert bool((found >= q.amin(0) - 1e-12).all()) and bool((found <= q.mean(0)).all())
    if count == 2:
        torch.testing.assert_close(found, q.amin(0))


def test_t129_without_optimism_it_acts_by_the_highest_mean_value_of_what_it_has_drawn() -> None:
    observation = np.random.default_rng(1).standard_normal(S).astype(np.float32)
    for optimism in (0.0, -50.0):
        method = enoto(optimism=optimism).float()
        drawn = method.actor.explore(np.repeat(observation[None], 10, 0), np.random.default_rng(0))
        with torch.no_grad():
            q = method.critic(torch.from_numpy(observation).expand(10, -1), torch.from_numpy(drawn))
        wanted = int((q.mean(0) + optimism * q.std(0)).argmax())
        assert np.array_equal(method.act(observation, np.random.default_rng(0)), drawn[wanted])
        assert (wanted == int(q.mean(0).argmax())) is (optimism == 0.0)


def test_t130_a_target_that_all_agree_on_counts_fully_and_the_more_they_differ_the_less() -> None:
    weight = doubt_weight(torch.linspace(0, 3, 20), 10.0)
    assert float(weight[0]) == 1.0 and bool((weight.diff() <= 0).all()) and bool((weight >= 0.5).all())
    assert float(weight[1]) < 1.0 and torch.equal(doubt_weight(torch.rand(4), 0.0), torch.ones(4))


def test_its_losses_descend_the_formulas() -> None:
    method, rows = enoto(), draw(0, B)
    noise, alpha = noise_of(method, (B, A)), method.log_alpha.exp().detach()
    a2, log_prob2 = squashed(method.actor, rows["s2"], noise["target"])
    q2 = method.target_critic(rows["s2"], a2)
    pairs = torch.stack([torch.minimum(q2[i], q2[j]) for i, j in itertools.combinations(range(4), 2)]).mean(0)
    y = (rows["r"] + 0.99 * (1 - rows["d"]) * (pairs - alpha * log_prob2)).detach()
    weight = (1 / (1 + torch.exp(10.0 * q2.std(0))) + 0.5).detach()
    critic_loss = (weight * (method.critic(rows["s"], rows["a"]) - y).square()).sum(-1).sum() / (4 * B)
    assert_descends(method, method.critic_step(transitions(rows), noise).value, (critic_loss, [method.critic]))
    a, log_prob = squashed(method.actor, rows["s"], noise["policy"])
    actor_loss = (alpha * log_prob - method.critic(rows["s"], a).mean(0)).mean()
    temperature_loss = -method.log_alpha * (log_prob.detach().mean() - A)
    found = method.policy_step(transitions(rows), noise).value
    assert_descends(method, found, (actor_loss, [method.actor]), (temperature_loss, [method.log_alpha]))


def so2(**options: Any) -> Any:
    return ready(SO2(**{"hidden": HIDDEN, "critic_hidden": HIDDEN, "critics": 3} | options))


def test_so2s_losses_descend_the_formulas() -> None:
    method, rows = so2(), draw(0, B)
    noise, alpha = noise_of(method, (B, A)), method.log_alpha.exp().detach()
    a2, log_prob2 = squashed(method.actor, rows["s2"], noise["target"])
    moved = (a2 + (0.3 * noise["perturbation"]).clamp(-0.6, 0.6)).clamp(-1, 1)
    value = method.target_critic(rows["s2"], moved).amin(0) - alpha * log_prob2
    y = (rows["r"] + 0.99 * (1 - rows["d"]) * value).detach()
    critic_loss = (method.critic(rows["s"], rows["a"]) - y).square().mean()
    assert_descends(method, method.critic_step(transitions(rows), noise).value, (critic_loss, [method.critic]))
    a, log_prob = squashed(method.actor, rows["s"], noise["policy"])
    actor_loss = (alpha * log_prob - method.critic(rows["s"], a).amin(0)).mean()
    temperature_loss = -method.log_alpha * (log_prob.detach().mean() - A)
    found = method.policy_step(transitions(rows), noise).value
    assert_descends(method, found, (actor_loss, [method.actor]), (temperature_loss, [method.log_alpha]))


def test_so2s_values_learn_alone_at_first() -> None:
    method = so2(values_first=3)
    moves = [method.policy_step in [*method.update(Moment(update))] for update in range(5)]
    assert moves == [False, False, False, True, True]
    assert all(len([*method.update(Moment(update))]) == 2 + moves[update] for update in range(5))
