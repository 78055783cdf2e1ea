"""Values and every gradient of each SAC and CQL step against the plain implementation of ``reference_sac``."""

from __future__ import annotations

import pytest
import reference_sac as plainly
import torch
from by_hand import HIDDEN, A, cached, transitions
from sac_by_hand import (
    THRESHOLD,
    B,
    assert_equal,
    assert_same,
    draw,
    noise_of,
    of_actor,
    of_critic,
    of_scalar,
    one_update,
    online,
    plain,
    ready,
    separately,
)

from o2o_lightning.errors import UserError
from o2o_lightning.methods.cql import CQL
from o2o_lightning.methods.o2 import sac

SEEDS = [0, 1]


@pytest.mark.parametrize("critics", [1, 2])
@pytest.mark.parametrize("seed", SEEDS)
def test_reevaluation_fits_the_soft_value_of_the_offline_policy(seed: int, critics: int):
    method = ready(sac.Reevaluate(hidden=HIDDEN, critics=critics), seed)
    batch, noise = draw(seed), noise_of(method, seed)
    nets = plain(method, noise)
    loss, found = one_update(method, cached(method, batch), noise)
    expected = plainly.reevaluation_loss(nets, batch)
    assert_equal(loss.value, expected)
    assert_same(found, separately(nets, expected, of_critic))


@pytest.mark.parametrize("critics", [1, 2])
@pytest.mark.parametrize("seed", SEEDS)
def test_alignment_descends_its_two_losses_at_once(seed: int, critics: int):
    method = ready(sac.Align(), seed, critics=critics)
    batch, noise = draw(seed), noise_of(method, seed)
    nets = plain(method, noise)
    loss, found = one_update(method, cached(method, batch), noise)
    critic_loss = plainly.alignment_critic_loss(nets, batch)
    actor_loss = plainly.sac_actor_loss(nets, batch, constraint=False)
    assert_equal(loss.metrics["align_loss"] + loss.metrics["retain_loss"], critic_loss)
    assert_equal(loss.metrics["actor_loss"], actor_loss)
    expected = separately(nets, critic_loss, of_critic) | separately(nets, actor_loss, of_actor)
    assert_same(found, expected)


def test_alignment_floors_the_log_probability_of_a_narrow_offline_policy():
    method, batch = ready(sac.Align()), draw()
    noise, narrow = noise_of(method), torch.tensor(-6.0)  # σ ≈ 0.0025: log π_off of other actions is in the −1000s
    method.offline_actor.log_std_offset.data.copy_(narrow)
    nets = plain(method, noise)
    loss, _ = one_update(method, cached(method, batch), noise)
    assert float(loss.metrics["offline_log_prob"].min()) < -1000
    assert_equal(loss.metrics["align_loss"] + loss.metrics["retain_loss"], plainly.alignment_critic_loss(nets, batch))
    assert float(loss.metrics["target"].min()) > -0.2 * (50 + 60) - 10

    method = ready(sac.Align(log_prob_floor=None))
    method.offline_actor.log_std_offset.data.copy_(narrow)
    loss, _ = one_update(method, cached(method, batch), noise)
    unbounded = plainly.alignment_critic_loss(nets, batch, floor=-float("inf"))
    assert_equal(loss.metrics["align_loss"] + loss.metrics["retain_loss"], unbounded)


@pytest.mark.parametrize("critics", [1, 2])
@pytest.mark.parametrize("constraint", [True, False])
@pytest.mark.parametrize("seed", SEEDS)
def test_fine_tuning_descends_all_losses_at_once(seed: int, constraint: bool, critics: int):
    method, batch = online(seed, critics=critics, constraint=constraint), draw(seed)
    noise = noise_of(method, seed)
    nets = plain(method, noise)
    loss, found = one_update(method, transitions(batch), noise)
    critic_loss = plainly.sac_critic_loss(nets, batch, constraint)
    actor_loss = plainly.sac_actor_loss(nets, batch, constraint)
    assert_equal(loss.metrics["target"], plainly.sac_target(nets, batch, constraint))
    expected = separately(nets, critic_loss, of_critic) | separately(nets, actor_loss, of_actor)
    temperature_loss = plainly.sac_temperature_loss(nets, batch)
    expected |= of_scalar(temperature_loss, nets.log_alpha, "log_alpha")
    total = critic_loss + actor_loss + temperature_loss
    if constraint:
        multiplier_loss = plainly.sac_multiplier_loss(nets, batch, THRESHOLD)
        expected |= of_scalar(multiplier_loss, nets.log_lambda, "log_multiplier")
        total = total + multiplier_loss
    assert_equal(loss.value, total)
    assert_same(found, expected)


def test_a_target_is_bounded_by_the_critics_that_were_drawn():
    batch, every = draw(), []
    for seed in range(4):
        method = online(critics=4, subset=2)
        noise = noise_of(method, seed)
        nets = plain(method, noise)
        first, second = sorted(range(4), key=noise["subset"].tolist().__getitem__)[:2]
        nets.target_critic = [nets.target_critic[first], nets.target_critic[second]]
        loss, _ = one_update(method, transitions(batch), noise)
        assert_equal(loss.metrics["target"], plainly.sac_target(nets, batch))
        every.append({first, second})
    assert len({frozenset(pair) for pair in every}) > 1  # another draw, other critics


@pytest.mark.parametrize(("subset", "says"), [(3, "--model.subset 3: there are 2 critics"), (0, "--model.subset 0")])
def test_more_critics_than_there_are_or_none_are_refused(subset: int, says: str):
    with pytest.raises(UserError, match=says):
        online(subset=subset)


def test_the_penalty_s_gradient_flows_through_the_action_into_the_reference_s_log_probability():
    method, batch = online(multiplier=1.7), draw()
    noise = noise_of(method)
    nets = plain(method, noise)
    _, found = one_update(method, transitions(batch), noise)
    a, log_prob = nets.actor.draw(batch["s"], nets.noise["policy"])
    loss = nets.log_alpha.detach().exp() * log_prob - plainly.smallest(nets.critic, batch["s"], a)
    cut = (loss + 1.7 * (log_prob - nets.reference.density(batch["s"], a.detach()))).mean()
    without = separately(nets, cut, of_actor)
    name = "actor.body.linears.0.weight"
    assert not torch.allclose(found[name], without[name], rtol=1e-2)
    assert all(parameter.grad is None for parameter in method.reference_policy.parameters())


CQL_OPTIONS = {
    "mujoco": {},
    "antmaze": dict(conservative_weight=5.0, lagrange_gap=0.8, gap_min=4.6, max_target=True),
    "entropy backup": dict(max_target=True, entropy_backup=True),
    "plain entropy backup": dict(entropy_backup=True, softmax_temperature=2.5),
    "no importance sampling": dict(importance_sampling=False),
}


@pytest.mark.parametrize("options", CQL_OPTIONS.values(), ids=CQL_OPTIONS.keys())
def test_cql_descends_all_losses_at_once(options: dict):
    samples = 4
    method, batch = ready(CQL(samples=samples, **options), seed=3, layer_norm=False), draw(3)
    noise = noise_of(method, 3)
    nets = plain(method, noise)
    loss, found = one_update(method, transitions(batch), noise)
    assert noise["uniform"].shape == (samples, B, A)
    assert noise["uniform"].min() < -0.9 and noise["uniform"].max() > 0.9
    weight, target_gap = options.get("conservative_weight", 10.0), options.get("lagrange_gap")
    max_target, clip = options.get("max_target", False), options.get("gap_min")
    assert_equal(
        loss.metrics["target"], plainly.cql_target(nets, batch, max_target, options.get("entropy_backup", False))
    )
    critic_loss = plainly.cql_critic_loss(
        nets, batch, weight, target_gap, max_target, clip,
        importance=options.get("importance_sampling", True),
        entropy_backup=options.get("entropy_backup", False),
        temperature=options.get("softmax_temperature", 1.0),
    )  # fmt: skip
    actor_loss = plainly.sac_actor_loss(nets, batch, constraint=False)
    temperature_loss = plainly.sac_temperature_loss(nets, batch)
    total = critic_loss + actor_loss + temperature_loss
    expected = separately(nets, critic_loss, of_critic) | separately(nets, actor_loss, of_actor)
    expected |= of_scalar(temperature_loss, nets.log_alpha, "log_alpha")
    if target_gap is not None:
        lagrange_loss = plainly.cql_lagrange_loss(nets, batch, weight, target_gap, clip)
        expected |= of_scalar(lagrange_loss, nets.log_lagrange, "log_lagrange")
        total = total + lagrange_loss
    assert_equal(loss.value, total)
    assert_same(found, expected)


def test_the_clip_of_the_test_above_binds_for_some_states_and_not_for_all():
    method, clip = ready(CQL(samples=4), seed=3, layer_norm=False), CQL_OPTIONS["antmaze"]["gap_min"]
    batch, nets = draw(3), plain(method, noise_of(method, 3))
    free, clipped = (plainly.cql_gaps(nets, batch, bound, True, 1.0)[0] for bound in (None, clip))
    assert free < clipped
    assert clipped > clip + 1e-3
