"""Each TD3 method's losses and all their gradients against a plain textbook implementation, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from by_hand import HIDDEN, cached, losses, transitions
from reference_td3 import (
    alignment_actor_loss,
    alignment_critic_loss,
    gradients,
    online_actor_loss,
    online_critic_loss,
    online_multiplier_loss,
    reevaluation_loss,
    td3_bc_actor_loss,
    td3_critic_loss,
)
from td3_by_hand import (
    THRESHOLD,
    assert_equal,
    assert_same,
    draw,
    noise_of,
    of_actor,
    of_critic,
    online,
    plain,
    ready,
)

from o2o_lightning.methods.method import Moment
from o2o_lightning.methods.o2 import td3
from o2o_lightning.methods.td3_bc import TD3BC

SEEDS = (0, 1, 2)


# ---- offline: TD3+BC ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_td3_bc_matches_the_textbook(seed: int) -> None:
    method, batch = ready(TD3BC(), seed, layer_norm=False), draw(seed)
    nets, noise = plain(method), noise_of(method, seed)
    steps = losses(method, transitions(batch), noise)

    loss, found = next(steps)
    expected = td3_critic_loss(nets, batch, noise["target"])
    expected.backward()
    assert_equal(loss.value, expected)
    assert_same(found, of_critic(nets))

    nets = plain(method)  # the actor climbs the critics that have just been stepped (D32)
    loss, found = next(steps)
    expected = td3_bc_actor_loss(nets, batch)
    expected.backward()
    assert_equal(loss.value, expected)
    assert_same(found, of_actor(nets))
    assert next(steps, None) is None


# ---- re-evaluation -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer_norm", [True, False])
@pytest.mark.parametrize("seed", SEEDS)
def test_re_evaluation_matches_the_textbook(seed: int, layer_norm: bool) -> None:
    method, batch = ready(td3.Reevaluate(hidden=HIDDEN, layer_norm=layer_norm), seed), draw(seed)
    nets, noise = plain(method), noise_of(method, seed)
    ((loss, found),) = losses(method, cached(method, batch), noise)
    expected = reevaluation_loss(nets, batch, noise["target"])
    expected.backward()
    assert_equal(loss.value, expected)
    assert_same(found, of_critic(nets))


# ---- alignment ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_the_one_summed_alignment_loss_has_exactly_the_gradients_of_its_two_losses(seed: int) -> None:
    method, batch = ready(td3.Align(), seed), draw(seed)
    nets, noise = plain(method), noise_of(method, seed)
    ((loss, found),) = losses(method, cached(method, batch), noise)
    critic_loss = alignment_critic_loss(nets, batch, noise["perturbation"])
    actor_loss = alignment_actor_loss(nets, batch)
    assert_equal(loss.value, critic_loss + actor_loss)
    assert_equal(loss.metrics["actor_loss"], actor_loss)

    critic_loss.backward()
    assert gradients(nets.actor) == {}  # the perturbed action is held constant
    of_critics = of_critic(nets)
    for net in nets.critic:
        net.requires_grad_(False)
    actor_loss.backward()
    assert_same(found, of_critics | of_actor(nets))


def test_alignment_meets_negative_and_positive_anchors_and_capped_distances() -> None:
    # otherwise the comparison above would not reach all branches of Eqs. 15, 43 and 44
    anchors, distances = [], []
    for seed in SEEDS:
        method = ready(td3.Align(), seed)
        batch = cached(method, draw(seed))
        loss = method.step(batch, noise_of(method, seed))
        anchors.append(batch["anchor_value"])
        distances.append(loss.metrics["distance"])
    assert (torch.cat(anchors) > 0).any() and (torch.cat(anchors) < 0).any()
    assert (torch.cat(distances) < 0.2).any() and (torch.cat(distances) == 0.2).any()


# ---- online ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", ["state", "batch"])
@pytest.mark.parametrize("seed", SEEDS)
def test_the_online_critic_matches_the_textbook_with_either_penalty(seed: int, penalty: str) -> None:
    method, batch = online(seed, penalty=penalty), draw(seed)
    nets, noise = plain(method), noise_of(method, seed)
    loss, found = next(losses(method, transitions(batch), noise))
    expected = online_critic_loss(nets, batch, noise["target"], 1.7, per_state=penalty == "state")
    expected.backward()
    assert_equal(loss.value, expected)
    assert_same(found, of_critic(nets))


def test_the_two_penalties_differ() -> None:
    batch, methods = transitions(draw()), [online(penalty="state"), online(penalty="batch")]
    state, of_batch = (float(m.critic_step(batch, noise_of(m)).value.detach()) for m in methods)
    assert state != pytest.approx(of_batch, rel=1e-4)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("seed", SEEDS)
def test_the_online_actor_and_multiplier_match_the_textbook(seed: int, normalize: bool) -> None:
    method, batch = online(seed, normalize_q=normalize), draw(seed)
    steps = losses(method, transitions(batch), noise_of(method, seed))
    next(steps)
    nets = plain(method)
    loss, found = next(steps)
    log_multiplier = torch.tensor(math.log(1.7), dtype=torch.float64, requires_grad=True)
    expected = online_actor_loss(nets, batch, 1.7, normalize)
    of_multiplier = online_multiplier_loss(nets, batch, log_multiplier, THRESHOLD)
    assert_equal(loss.value, expected + of_multiplier, atol=1e-7)
    expected.backward()
    of_multiplier.backward()
    assert log_multiplier.grad is not None
    assert_same(found, of_actor(nets) | {"log_multiplier": log_multiplier.grad})
    assert next(steps, None) is None


def test_the_divergence_reaches_both_sides_of_the_threshold() -> None:
    method = online()
    divergence = method.policy_step(transitions(draw()), noise_of(method)).metrics["divergence"]
    assert (divergence < THRESHOLD).any() and (divergence > THRESHOLD).any()


def test_the_multiplier_alone_is_updated_where_the_actor_is_not_due() -> None:
    method, batch = online(every=1), draw()
    nets = plain(method)
    (_, _), (loss, found) = losses(method, transitions(batch), noise_of(method), Moment(0))
    variable = torch.tensor(math.log(1.7), dtype=torch.float64, requires_grad=True)
    expected = online_multiplier_loss(nets, batch, variable, THRESHOLD)
    expected.backward()
    assert_equal(loss.value, expected)
    assert variable.grad is not None
    assert_same(found, {"log_multiplier": variable.grad})
