"""Checkable properties of O2SAC's objectives (facts 12: T1-T8, T17-T20, T26-T28), closed form and Monte Carlo."""

from __future__ import annotations

import math

import pytest
import torch
from by_hand import SECOND, losses, transitions
from hypothesis import given
from hypothesis import strategies as st
from sac_by_hand import draw, noise_of, one_update, online, plain

from o2o_lightning.nn.squashed_gaussian import SquashedGaussian
from o2o_lightning.objectives.alignment import alignment_loss, alignment_target_sac, calibrated_value_sac
from o2o_lightning.objectives.constraint import kl_estimate, multiplier_loss, threshold_at
from o2o_lightning.objectives.sac import soft_policy_loss, soft_value, temperature_loss

ALPHA = torch.tensor(0.2, dtype=torch.float64)
values = st.floats(-200, 200)


def tensor(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


# ---- alignment -----------------------------------------------------------------------------------------------------


@given(values, values, values, values, st.floats(0.01, 2))
def test_the_target_is_never_above_the_old_value_or_the_calibrated_one(anchor, anchor_log_prob, log_prob, old, alpha):
    calibrated = calibrated_value_sac(tensor(anchor), tensor(anchor_log_prob), tensor(log_prob), tensor(alpha), -50.0)
    q_old = torch.stack([tensor(old), tensor(old + 3)])
    target = alignment_target_sac(calibrated, q_old)
    assert target <= q_old.amin(0) and target <= calibrated
    assert target == q_old.amin(0) or target == calibrated


@given(values, values)
def test_the_anchor_is_a_fixed_point(anchor, log_prob):
    calibrated = calibrated_value_sac(tensor(anchor), tensor(log_prob), tensor(log_prob), ALPHA)
    assert calibrated == tensor(anchor)
    assert alignment_target_sac(calibrated, tensor(anchor)[None]) == tensor(anchor)


def test_the_calibrated_value_rises_with_the_log_probability_at_slope_alpha():
    log_prob = torch.linspace(-40, 4, 100, dtype=torch.float64, requires_grad=True)
    calibrated = calibrated_value_sac(tensor(3.0), tensor(1.0), log_prob, ALPHA, -50.0)
    calibrated.sum().backward()
    torch.testing.assert_close(log_prob.grad, ALPHA.expand(100))
    equal = calibrated_value_sac(tensor(3.0), tensor(1.0), tensor(-2.0, -2.0), ALPHA)
    assert equal[0] == equal[1] == 3.0 - 0.2 * 3.0


def test_the_floor_bounds_the_target_of_an_action_that_the_offline_policy_never_takes():
    far = tensor(-4000.0)
    assert float(calibrated_value_sac(tensor(10.0), tensor(5.0), far, ALPHA, -50.0)) == pytest.approx(10 - 0.2 * 55)
    assert float(calibrated_value_sac(tensor(10.0), tensor(5.0), far, ALPHA)) == pytest.approx(10 - 0.2 * 4005)


def finite_policies(count: int, actions: int):
    """Random finite policies [n, K] with old values [n, K]; anchors are the likeliest actions."""
    generator = torch.Generator().manual_seed(0)
    log_prob = torch.randn(count, actions, generator=generator, dtype=torch.float64).mul(2).log_softmax(-1)
    q_old = torch.randn(count, actions, generator=generator, dtype=torch.float64) * 2
    anchor = log_prob.argmax(-1, keepdim=True)
    q_anchor, log_prob_anchor = q_old.gather(-1, anchor), log_prob.gather(-1, anchor)
    calibrated = calibrated_value_sac(q_anchor, log_prob_anchor, log_prob, ALPHA)
    aligned = alignment_target_sac(calibrated, q_old[None])
    return log_prob, q_old, anchor, q_anchor - ALPHA * log_prob_anchor, calibrated, aligned


def test_the_offline_policy_s_action_is_the_best_of_the_aligned_values():
    _, _, anchor, _, _, aligned = finite_policies(2000, 8)
    assert torch.equal(aligned.argmax(-1, keepdim=True), anchor)


def test_the_density_s_mode_is_the_best_action_of_a_continuous_policy():
    policy = SquashedGaussian(tensor(0.5)[None], tensor(math.log(0.37))[None])
    actions = torch.linspace(-0.999, 0.999, 9991, dtype=torch.float64)[:, None]
    log_prob = policy.log_prob(actions)
    q_old = 5 + 2 * torch.sin(3 * actions[:, 0])
    mode = log_prob.argmax()
    aligned = alignment_target_sac(calibrated_value_sac(q_old[mode], log_prob[mode], log_prob, ALPHA), q_old[None])
    assert aligned.argmax() == mode


def test_no_aligned_soft_value_is_above_the_anchor_s():
    log_prob, _, _, anchor_soft_value, _, aligned = finite_policies(2000, 8)
    soft = aligned - ALPHA * log_prob
    assert (soft <= anchor_soft_value + 1e-12).all()
    assert ((log_prob.exp() * soft).sum(-1, keepdim=True) <= anchor_soft_value + 1e-12).all()


def test_the_aligned_value_is_at_least_the_standard_actions_mean_soft_value():
    log_prob, q_old, _, _, calibrated, aligned = finite_policies(2000, 8)
    standard = q_old < calibrated
    weight = log_prob.exp() * standard
    some = weight.sum(-1) > 0
    mean = ((weight * (q_old - ALPHA * log_prob)).sum(-1) / weight.sum(-1))[some]
    aligned_value = (log_prob.exp() * (aligned - ALPHA * log_prob)).sum(-1)[some]
    assert some.sum() > 1000 and (mean <= aligned_value + 1e-12).all()
    # of a single standard action it is not true, so the statement above is not empty
    single = (q_old - ALPHA * log_prob)[some][standard[some]]
    assert (single > aligned_value[:, None].expand(-1, 8)[standard[some]] + 1e-9).any()


def test_the_aligned_value_splits_into_calibrated_and_standard_actions():
    log_prob, q_old, _, anchor_soft_value, calibrated, aligned = finite_policies(2000, 8)
    probability, standard = log_prob.exp(), q_old < calibrated
    value = (probability * (aligned - ALPHA * log_prob)).sum(-1)
    of_calibrated = (probability * ~standard).sum(-1) * anchor_soft_value[:, 0]
    of_standard = (probability * standard * (q_old - ALPHA * log_prob)).sum(-1)
    torch.testing.assert_close(value, of_calibrated + of_standard)
    all_calibrated = ~standard.any(-1)
    assert torch.equal(all_calibrated, (value - anchor_soft_value[:, 0]).abs() < 1e-12)


def test_a_single_critic_keeps_the_anchor_s_value_while_it_is_aligned():
    log_prob, q_old, anchor, *_ = finite_policies(1, 8)
    q = q_old.clone().requires_grad_(True)
    frozen = q_old.clone()
    q_anchor, log_prob_anchor = frozen.gather(-1, anchor)[0], log_prob.gather(-1, anchor)[0]
    optimizer = torch.optim.SGD([q], lr=0.05)
    for _ in range(200):
        target = alignment_target_sac(calibrated_value_sac(q_anchor, log_prob_anchor, log_prob[0], ALPHA), frozen)
        align, retain = alignment_loss(q, target, q.gather(-1, anchor), q_anchor)
        optimizer.zero_grad()
        (align + retain).backward()
        optimizer.step()
    assert q.gather(-1, anchor).detach() == frozen.gather(-1, anchor)
    assert not torch.equal(q.detach(), frozen)
    assert q.argmax() == anchor


# ---- SAC -----------------------------------------------------------------------------------------------------------


def test_the_temperature_rests_where_the_mean_log_probability_is_the_action_count():
    log_alpha = torch.tensor(-1.3, requires_grad=True)
    log_prob = torch.tensor([2.0, 4.0])
    (at_rest,) = torch.autograd.grad(temperature_loss(log_alpha, log_prob, target_entropy=-3.0), log_alpha)
    assert float(at_rest) == 0.0
    (narrow,) = torch.autograd.grad(temperature_loss(log_alpha, log_prob + 1, target_entropy=-3.0), log_alpha)
    assert float(narrow) == -1.0  # too little entropy: descent raises α


def test_the_policy_loss_prefers_the_smaller_critic_s_value():
    q = torch.tensor([[1.0, 5.0], [2.0, 3.0]], requires_grad=True)
    loss = soft_policy_loss(q, torch.tensor([-1.0, 2.0]), torch.tensor(0.5))
    assert float(loss) == pytest.approx(((-0.5 - 1.0) + (1.0 - 3.0)) / 2)
    loss.backward()
    assert torch.equal(q.grad, torch.tensor([[-0.5, 0.0], [0.0, -0.5]]))


def test_a_single_critic_needs_no_minimum():
    q, log_prob = torch.tensor([[1.0, 5.0]]), torch.tensor([-1.0, 2.0])
    assert torch.equal(soft_value(q, log_prob, torch.tensor(0.5)), torch.tensor([1.5, 4.0]))


def test_the_soft_value_of_a_gaussian_is_its_value_plus_alpha_times_its_entropy():
    """Monte Carlo against quadrature of the same density on a grid."""
    policy = SquashedGaussian(tensor(0.3)[None], tensor(math.log(0.5))[None])
    actions = torch.linspace(-0.9999, 0.9999, 200_001, dtype=torch.float64)[:, None]
    log_prob = policy.log_prob(actions)
    q = actions[:, 0] ** 2
    exact = torch.trapezoid(log_prob.exp() * (q - ALPHA * log_prob), actions[:, 0])
    noise = torch.randn(200_000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sampled, sampled_log_prob = policy.sample(noise)
    estimate = soft_value(sampled[:, 0].square()[None], sampled_log_prob, ALPHA).mean()
    assert float(estimate) == pytest.approx(float(exact), abs=5e-3)


# ---- the constraint ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shift", "divergence"), [(0.5, 0.125), (1.0, 0.5), (2.0, 2.0), (0.1, 0.005)])
def test_thresholds_in_nats_are_shifts_in_deviations(shift: float, divergence: float):
    std, mean = 0.2, 0.1
    log_std = tensor(math.log(std))[None]
    policy = SquashedGaussian(tensor(mean + shift * std)[None], log_std)
    noise = torch.randn(400_000, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    action, log_prob = policy.sample(noise)
    reference = SquashedGaussian(tensor(mean)[None], log_std)
    estimate = kl_estimate(log_prob, reference.log_prob(action)).mean()
    assert float(estimate) == pytest.approx(divergence, abs=4 * shift / math.sqrt(400_000) + 1e-6)


def test_the_floor_on_the_reference_stops_value_and_gradient_there():
    reference = tensor(-10.0, -50.1, -4000.0).requires_grad_(True)
    divergence = kl_estimate(tensor(1.0, 1.0, 1.0), reference)
    assert divergence.tolist() == [11.0, 51.0, 51.0]
    divergence.sum().backward()
    assert reference.grad.tolist() == [-1.0, 0.0, 0.0]


def test_a_fresh_reference_leaves_the_plain_sac_target():
    method, free = online(spread=0.05), online(constraint=False, spread=0.05)
    free.actor.load_state_dict(method.actor.state_dict())
    free.target_critic.load_state_dict(method.target_critic.state_dict())
    method.reference_policy.load_state_dict(method.actor.state_dict())
    batch, noise = transitions(draw()), noise_of(method)
    constrained, plain_sac = method.step(batch, noise).metrics, free.step(batch, noise).metrics
    assert float(constrained["divergence"].abs().max()) < 1e-5
    torch.testing.assert_close(constrained["target"], plain_sac["target"], rtol=0, atol=1e-5)


def test_a_satisfied_constraint_lets_the_multiplier_fall_and_a_violated_one_raises_it_faster():
    log_multiplier, threshold = torch.tensor(math.log(2.0), requires_grad=True), torch.tensor(0.5)
    (satisfied,) = torch.autograd.grad(
        multiplier_loss(log_multiplier, torch.tensor([0.1, 0.3]), threshold), log_multiplier
    )
    (violated,) = torch.autograd.grad(
        multiplier_loss(log_multiplier, torch.tensor([0.7, 0.9]), threshold), log_multiplier
    )
    assert float(satisfied) == pytest.approx(0.3 * 2.0 * 0.3)
    assert float(violated) == pytest.approx(-0.7 * 2.0 * 0.3)
    assert float(violated / satisfied) == pytest.approx(-7 / 3)


def test_adam_moves_the_log_multiplier_by_its_rate_at_first():
    log_multiplier = torch.nn.Parameter(torch.tensor(0.0))
    optimizer = torch.optim.Adam([log_multiplier], lr=5e-5)
    multiplier_loss(log_multiplier, torch.tensor([0.1, 0.2]), torch.tensor(0.5)).backward()
    optimizer.step()
    assert float(log_multiplier.detach()) == pytest.approx(-5e-5, rel=1e-4)


def test_the_threshold_rises_from_half_a_deviation_to_two():
    points = [threshold_at(step, 0.125, 2.0, 100_000) for step in range(0, 200_001, 1000)]
    assert points[0] == 0.125 and points[50] == pytest.approx(1.0625)
    assert points[100] == pytest.approx(2.0) and points[-1] == pytest.approx(2.0)
    assert points == sorted(points)


def test_a_terminal_transition_has_neither_bootstrap_nor_penalty():
    method, batch = online(multiplier=1000.0), draw()
    batch["d"] = torch.ones_like(batch["d"])
    loss, _ = one_update(method, transitions(batch), noise_of(method))
    assert torch.equal(loss.metrics["target"], batch["r"])


def test_temperature_and_multiplier_receive_no_gradient_through_the_policy_loss():
    method, batch = online(), draw()
    noise, later = noise_of(method), SECOND._replace(place=1)  # of the updates of an environment step, not the first
    nets = plain(method, noise)
    ((_, found),) = losses(method, transitions(batch), noise, later)
    assert "log_multiplier" not in found
    _, log_prob = nets.actor.draw(batch["s"], noise["policy"])
    torch.testing.assert_close(found["log_alpha"], -(log_prob.mean() - 3).detach())


def test_rewards_and_critics_are_vectors_so_that_nothing_broadcasts_to_a_square():
    method, batch = online(), draw()
    loss, _ = one_update(method, transitions(batch), noise_of(method))
    size = batch["r"].shape
    assert loss.metrics["target"].shape == size and loss.metrics["divergence"].shape == size
    assert loss.metrics["q"].shape == (2, *size)
