"""Each TD3 phase's losses and all their gradients against a plain textbook implementation, in float64."""

from __future__ import annotations

import math

import pytest
import torch
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
    assert_same,
    cached,
    draw,
    losses,
    next_noise,
    of_actor,
    of_critic,
    online,
    plain,
    ready,
    transitions,
)

from o2o_lightning.phases import TD3BC, AlignTD3, ReevaluateTD3

SEEDS = (0, 1, 2)


# ---- offline: TD3+BC ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_td3_bc_matches_the_textbook(seed: int) -> None:
    phase, batch = ready(TD3BC(), seed, layer_norm=False), draw(seed)
    nets, noise = plain(phase), next_noise(phase)
    steps = losses(phase, transitions(batch))

    loss, found = next(steps)
    expected = td3_critic_loss(nets, batch, noise)
    expected.backward()
    torch.testing.assert_close(loss.value, expected, rtol=1e-5, atol=0)
    assert_same(found, of_critic(nets))

    nets = plain(phase)  # the actor climbs the critics that have just been stepped (D32)
    loss, found = next(steps)
    expected = td3_bc_actor_loss(nets, batch)
    expected.backward()
    torch.testing.assert_close(loss.value, expected, rtol=1e-5, atol=0)
    assert_same(found, of_actor(nets))
    assert next(steps, None) is None


# ---- re-evaluation -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer_norm", [True, False])
@pytest.mark.parametrize("seed", SEEDS)
def test_re_evaluation_matches_the_textbook(seed: int, layer_norm: bool) -> None:
    phase, batch = ready(ReevaluateTD3("unused"), seed, layer_norm), draw(seed)
    nets, noise = plain(phase), next_noise(phase)
    ((loss, found),) = losses(phase, cached(phase, batch))
    expected = reevaluation_loss(nets, batch, noise)
    expected.backward()
    torch.testing.assert_close(loss.value, expected, rtol=1e-5, atol=0)
    assert_same(found, of_critic(nets))


# ---- alignment ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_the_one_summed_alignment_loss_has_exactly_the_gradients_of_its_two_losses(seed: int) -> None:
    phase, batch = ready(AlignTD3("unused"), seed), draw(seed)
    nets, noise = plain(phase), next_noise(phase)
    ((loss, found),) = losses(phase, cached(phase, batch))
    critic_loss, actor_loss = alignment_critic_loss(nets, batch, noise), alignment_actor_loss(nets, batch)
    torch.testing.assert_close(loss.value, critic_loss + actor_loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(loss.metrics["actor_loss"], actor_loss, rtol=1e-5, atol=0)

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
        phase = ready(AlignTD3("unused"), seed)
        batch = cached(phase, draw(seed))
        (loss,) = phase.update(batch)
        anchors.append(batch["anchor_value"])
        distances.append(loss.metrics["distance"])
    assert (torch.cat(anchors) > 0).any() and (torch.cat(anchors) < 0).any()
    assert (torch.cat(distances) < 0.2).any() and (torch.cat(distances) == 0.2).any()


# ---- online ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", ["state", "batch"])
@pytest.mark.parametrize("seed", SEEDS)
def test_the_online_critic_matches_the_textbook_with_either_penalty(seed: int, penalty: str) -> None:
    phase, batch = online(seed, penalty=penalty), draw(seed)
    nets, noise = plain(phase), next_noise(phase)
    loss, found = next(losses(phase, transitions(batch)))
    expected = online_critic_loss(nets, batch, noise, 1.7, per_state=penalty == "state")
    expected.backward()
    torch.testing.assert_close(loss.value, expected, rtol=1e-5, atol=0)
    assert_same(found, of_critic(nets))


def test_the_two_penalties_differ() -> None:
    batch = transitions(draw(0))
    state, of_batch = (float(next(online(0, penalty=p).update(batch)).value.detach()) for p in ("state", "batch"))
    assert state != pytest.approx(of_batch, rel=1e-4)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("seed", SEEDS)
def test_the_online_actor_and_multiplier_match_the_textbook(seed: int, normalize: bool) -> None:
    phase, batch = online(seed, normalize_q=normalize), draw(seed)
    steps = losses(phase, transitions(batch))
    next(steps)
    nets = plain(phase)
    loss, found = next(steps)
    log_multiplier = torch.tensor(math.log(1.7), dtype=torch.float64, requires_grad=True)
    expected = online_actor_loss(nets, batch, 1.7, normalize)
    of_multiplier = online_multiplier_loss(nets, batch, log_multiplier, THRESHOLD)
    torch.testing.assert_close(loss.value, expected + of_multiplier, rtol=1e-5, atol=1e-7)
    expected.backward()
    of_multiplier.backward()
    assert log_multiplier.grad is not None
    assert_same(found, of_actor(nets) | {"log_multiplier": log_multiplier.grad})
    assert next(steps, None) is None


def test_the_divergence_reaches_both_sides_of_the_threshold() -> None:
    phase = online(0)
    divergence = list(phase.update(transitions(draw(0))))[1].metrics["divergence"]
    assert (divergence < THRESHOLD).any() and (divergence > THRESHOLD).any()


def test_the_multiplier_alone_is_updated_where_the_actor_is_not_due() -> None:
    phase, batch = online(0), draw(0)
    phase.multiplier.every, phase.policy_delay = 1, 2
    phase.updates = 0
    nets = plain(phase)
    (_, _), (loss, found) = losses(phase, transitions(batch))
    variable = torch.tensor(math.log(1.7), dtype=torch.float64, requires_grad=True)
    expected = online_multiplier_loss(nets, batch, variable, THRESHOLD)
    expected.backward()
    torch.testing.assert_close(loss.value, expected, rtol=1e-5, atol=0)
    assert variable.grad is not None
    assert_same(found, {"log_multiplier": variable.grad})
