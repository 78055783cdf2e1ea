"""TD3's objectives against closed forms, and the properties that hold for every input (T1–T4, T9–T11, T17–T20, T26)."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from o2o_lightning.objectives.alignment import (
    action_distance,
    alignment_loss,
    alignment_target_td3,
    calibrated_value_td3,
)
from o2o_lightning.objectives.bellman import critic_loss, td_target
from o2o_lightning.objectives.constraint import multiplier_loss, squared_divergence, threshold_at
from o2o_lightning.objectives.td3 import normalized_policy_loss, policy_loss, smoothed_action, td3_bc_policy_loss

SIGMA = 0.2
values = st.floats(-1e4, 1e4, allow_subnormal=False)
unit = st.floats(-1.0, 1.0, allow_subnormal=False)


def tensor(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def vectors(elements: st.SearchStrategy[float], least: int = 1, most: int = 6) -> st.SearchStrategy[Tensor]:
    return st.lists(elements, min_size=least, max_size=most).map(lambda numbers: tensor(*numbers))


def pairs(elements: st.SearchStrategy[float]) -> st.SearchStrategy[tuple[Tensor, Tensor]]:
    """Two vectors of one length."""
    both = st.lists(st.tuples(elements, elements), min_size=1, max_size=6)
    return both.map(lambda rows: (tensor(*(a for a, _ in rows)), tensor(*(b for _, b in rows))))


# ---- alignment ---------------------------------------------------------------------------------------------------


@given(anchor_value=values, distance=st.floats(0.0, SIGMA), old=vectors(values, 2, 2))
def test_a_calibrated_target_exceeds_neither_the_old_value_nor_the_anchors(
    anchor_value: float, distance: float, old: Tensor
) -> None:
    calibrated = calibrated_value_td3(tensor(anchor_value), tensor(distance), 1.0)
    target = alignment_target_td3(calibrated, old[:, None])
    assert target.shape == (2, 1)
    assert (target[:, 0] <= old).all()
    assert (target[:, 0] <= calibrated).all()
    assert (target[:, 0] <= anchor_value).all()


@given(old=vectors(values, 2, 2))
def test_at_the_anchor_both_halves_of_the_alignment_have_the_same_target(old: Tensor) -> None:
    anchor = tensor(0.3, -0.9)[None]
    anchor_value = old.min()[None]
    calibrated = calibrated_value_td3(anchor_value, action_distance(anchor, anchor, SIGMA), 1.0)
    target = alignment_target_td3(calibrated, old[:, None])
    assert torch.equal(target, anchor_value.expand(2, 1))
    q = tensor(1.0, 2.0)[:, None]
    align, retain = alignment_loss(q, target, q, anchor_value)
    assert torch.equal(align, retain)


def test_minimising_the_alignment_leaves_the_anchors_value_and_lowers_only_what_was_too_high() -> None:
    # one state, three actions 0.0 (the anchor), 0.1 and 0.5; a table instead of networks
    actions = tensor(0.0, 0.1, 0.5)[:, None]
    old = torch.tensor([[5.0, 9.0, 2.0], [4.0, 3.0, 8.0]], dtype=torch.float64)
    anchor_value = tensor(4.0)
    calibrated = calibrated_value_td3(anchor_value, action_distance(actions, actions[:1], SIGMA), 1.0)
    target = alignment_target_td3(calibrated, old)
    q = old.clone().requires_grad_()
    for _ in range(200):
        align, retain = alignment_loss(q, target, q[:, :1], anchor_value)
        (gradient,) = torch.autograd.grad(align + retain, q)
        q = (q - 0.3 * gradient).detach().requires_grad_()
    # 4 / (1 + 0.1²) and 4 / (1 + 0.2²): the distance is capped at σ; 2 and 3 were low enough
    expected = torch.tensor([[4.0, 4 / 1.01, 2.0], [4.0, 3.0, 4 / 1.04]], dtype=torch.float64)
    torch.testing.assert_close(q.detach(), expected)
    assert float(q.detach()[:, 0].min()) == pytest.approx(4.0)


@given(
    old=st.lists(st.tuples(values, values), min_size=2, max_size=8),
    others=st.lists(unit, min_size=1, max_size=7),
    anchor=unit,
)
def test_the_offline_action_maximises_the_aligned_values(
    old: list[tuple[float, float]], others: list[float], anchor: float
) -> None:
    count = min(len(old), len(others) + 1)
    actions = tensor(anchor, *others)[:count, None]
    table = torch.tensor(old[:count], dtype=torch.float64).T
    anchor_value = table[:, 0].min()[None]
    calibrated = calibrated_value_td3(anchor_value, action_distance(actions, actions[:1], SIGMA), 1.0)
    aligned = alignment_target_td3(calibrated, table)
    assert (aligned[:, 0] == anchor_value).all()
    assert (aligned <= aligned[:, :1]).all()


@given(anchor_value=values, distance=st.floats(0.0, SIGMA))
def test_a_calibrated_value_lies_within_four_per_cent_below_the_anchors(anchor_value: float, distance: float) -> None:
    calibrated = float(calibrated_value_td3(tensor(anchor_value), tensor(distance), 1.0))
    lowest = anchor_value / 1.04 if anchor_value > 0 else anchor_value * 1.04
    assert calibrated <= anchor_value
    assert calibrated >= lowest - 1e-12 * abs(lowest)
    if anchor_value == 0:
        assert calibrated == 0


@pytest.mark.parametrize(
    ("anchor_value", "distance", "expected"),
    [(1.04, 0.2, 1.0), (-1.0, 0.2, -1.04), (0.0, 0.2, 0.0), (10.0, 0.1, 10 / 1.01), (-10.0, 0.1, -10.1)],
)
def test_the_calibrated_value_divides_above_zero_and_multiplies_below(
    anchor_value: float, distance: float, expected: float
) -> None:
    assert float(calibrated_value_td3(tensor(anchor_value), tensor(distance), 1.0)) == pytest.approx(expected)


@given(anchor_value=values, near=st.floats(0.0, 2.0), far=st.floats(0.0, 2.0))
def test_a_calibrated_value_never_rises_with_the_distance_and_is_flat_from_sigma_on(
    anchor_value: float, near: float, far: float
) -> None:
    near, far = sorted((near, far))
    actions = tensor(near, far)[:, None]
    distance = action_distance(actions, torch.zeros_like(actions), SIGMA)
    first, second = calibrated_value_td3(tensor(anchor_value, anchor_value), distance, 1.0)
    assert first >= second
    if near >= SIGMA:
        assert first == second


@given(anchor_value=values)
def test_a_calibrated_value_has_no_slope_at_the_anchor(anchor_value: float) -> None:
    distance = tensor(0.0).requires_grad_()
    (slope,) = torch.autograd.grad(calibrated_value_td3(tensor(anchor_value), distance, 1.0).sum(), distance)
    assert float(slope) == 0.0


@given(both=pairs(unit))
def test_the_action_distance_is_zero_only_at_the_anchor_and_at_most_sigma(both: tuple[Tensor, Tensor]) -> None:
    action, anchor = (part[None] for part in both)
    distance = float(action_distance(action, anchor, SIGMA))
    assert 0.0 <= distance <= SIGMA
    # differences under 1e-150 square to zero
    if float((action - anchor).abs().max()) > 1e-150 or torch.equal(action, anchor):
        assert (distance == 0.0) == torch.equal(action, anchor)


@given(difference=st.floats(-SIGMA, SIGMA), count=st.integers(1, 20))
def test_equal_differences_in_all_dimensions_are_the_distance(difference: float, count: int) -> None:
    assume(abs(difference) > 1e-100)
    anchor = torch.zeros(1, count, dtype=torch.float64)
    assert float(action_distance(anchor + difference, anchor, SIGMA)) == pytest.approx(abs(difference), rel=1e-12)


@given(both=pairs(unit))
def test_the_action_distance_ignores_that_every_dimension_is_doubled(both: tuple[Tensor, Tensor]) -> None:
    once = action_distance(both[0][None], both[1][None], SIGMA)
    twice = action_distance(both[0].repeat(2)[None], both[1].repeat(2)[None], SIGMA)
    torch.testing.assert_close(once, twice)


def test_the_alignment_losses_sum_over_critics_and_average_over_the_batch() -> None:
    q_action = torch.tensor([[1.0, 2.0], [3.0, 5.0]])
    target = torch.tensor([[0.0, 2.0], [1.0, 2.0]])
    q_anchor = torch.tensor([[1.0, 1.0], [0.0, 4.0]])
    align, retain = alignment_loss(q_action, target, q_anchor, torch.tensor([0.0, 1.0]))
    assert float(align) == (1 + 0) / 2 + (4 + 9) / 2
    assert float(retain) == (1 + 0) / 2 + (0 + 9) / 2


# ---- Bellman targets ---------------------------------------------------------------------------------------------


@given(reward=values, next_value=values, discount=st.floats(0.0, 1.0))
def test_a_terminal_transition_is_worth_its_reward_whatever_is_predicted(
    reward: float, next_value: float, discount: float
) -> None:
    assert float(td_target(tensor(reward), tensor(1.0), tensor(next_value), discount)) == reward


@given(reward=values, next_value=values)
def test_a_transition_that_goes_on_bootstraps(reward: float, next_value: float) -> None:
    target = float(td_target(tensor(reward), tensor(0.0), tensor(next_value), 0.99))
    assert target == pytest.approx(reward + 0.99 * next_value)


def test_the_critic_loss_sums_over_critics_and_takes_one_target_or_one_a_critic() -> None:
    q = torch.tensor([[1.0, 3.0], [2.0, 2.0]])
    assert float(critic_loss(q, torch.tensor([1.0, 1.0]))) == (0 + 4) / 2 + (1 + 1) / 2
    assert float(critic_loss(q, torch.tensor([[1.0, 3.0], [0.0, 0.0]]))) == 0 + (4 + 4) / 2


# ---- TD3 ---------------------------------------------------------------------------------------------------------


@given(both=pairs(st.floats(-5.0, 5.0)), std=st.floats(0.0, 2.0), clip=st.floats(0.0, 1.0))
def test_a_smoothed_action_stays_in_the_box_and_within_the_noise_clip(
    both: tuple[Tensor, Tensor], std: float, clip: float
) -> None:
    action, noise = both[0].clamp(-1, 1), both[1]
    smoothed = smoothed_action(action, noise, std, clip)
    assert (smoothed.abs() <= 1.0).all()
    assert ((smoothed - action).abs() <= clip + 1e-12).all()


def test_target_smoothing_clips_the_noise_first_and_the_action_then() -> None:
    action, noise = tensor(0.9, 0.9, 0.0, -0.8), tensor(1.0, -5.0, 5.0, -1.0)
    torch.testing.assert_close(smoothed_action(action, noise, 0.2, 0.5), tensor(1.0, 0.4, 0.5, -1.0))


@given(q=vectors(st.floats(0.1, 1e3).flatmap(lambda x: st.sampled_from((x, -x)))), scale=st.floats(1e-2, 1e3))
def test_the_normalised_policy_loss_ignores_the_scale_of_q(q: Tensor, scale: float) -> None:
    torch.testing.assert_close(normalized_policy_loss(q), normalized_policy_loss(q * scale))
    assert abs(float(normalized_policy_loss(q))) <= 1.0 + 1e-12


def test_policy_losses_have_their_closed_forms_and_hold_the_normaliser_constant() -> None:
    q = tensor(1.0, -3.0).requires_grad_()
    assert policy_loss(q).item() == 1.0
    loss = normalized_policy_loss(q)
    assert loss.item() == 0.5  # −(−1) / 2
    (gradient,) = torch.autograd.grad(loss, q)
    torch.testing.assert_close(gradient, tensor(-0.25, -0.25))  # −1 / (B · mean|Q|)


def test_td3_bc_adds_the_squared_distance_to_the_data_over_batch_and_dimensions() -> None:
    q = tensor(2.0, 4.0).requires_grad_()
    action = torch.tensor([[0.5, 0.0], [1.0, -1.0]], dtype=torch.float64, requires_grad=True)
    data = torch.zeros(2, 2, dtype=torch.float64)
    loss = td3_bc_policy_loss(q, action, data, 2.5)
    assert loss.item() == pytest.approx(-2.5 + (0.25 + 0 + 1 + 1) / 4)
    of_q, of_action = torch.autograd.grad(loss, (q, action))
    torch.testing.assert_close(of_q, tensor(-2.5 / 6, -2.5 / 6))  # α / (B · 3)
    torch.testing.assert_close(of_action, action.detach() / 2)  # 2a / 4


# ---- the constraint ----------------------------------------------------------------------------------------------


@given(action=vectors(unit))
def test_a_policy_that_is_its_own_reference_has_no_divergence(action: Tensor) -> None:
    assert torch.equal(squared_divergence(action, action.clone()), torch.zeros_like(action))


@given(both=pairs(unit))
def test_the_divergence_is_one_squared_difference_per_action_dimension(both: tuple[Tensor, Tensor]) -> None:
    divergence = squared_divergence(both[0][None], both[1][None])
    assert divergence[0].tolist() == [(a - b) * (a - b) for a, b in zip(*map(Tensor.tolist, both), strict=True)]


def multiplier_gradient(log_multiplier: float, divergence: Tensor, threshold: float) -> float:
    variable = torch.tensor(log_multiplier, dtype=torch.float64, requires_grad=True)
    loss = multiplier_loss(variable, divergence, torch.tensor(threshold, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(loss, variable)
    return float(gradient)


@given(
    log_multiplier=st.floats(-5.0, 5.0),
    threshold=st.floats(0.01, 1.0),
    shares=vectors(st.floats(0.0, 0.99)),
)
def test_a_satisfied_constraint_lowers_the_multiplier(log_multiplier: float, threshold: float, shares: Tensor) -> None:
    divergence = threshold * shares
    expected = 0.3 * math.exp(log_multiplier) * (threshold - float(divergence.mean()))
    gradient = multiplier_gradient(log_multiplier, divergence, threshold)
    assert gradient > 0
    assert gradient == pytest.approx(expected, rel=1e-9)


@given(
    log_multiplier=st.floats(-5.0, 5.0),
    threshold=st.floats(0.01, 1.0),
    excess=vectors(st.floats(0.01, 1.0)),
)
def test_a_violated_constraint_raises_the_multiplier(log_multiplier: float, threshold: float, excess: Tensor) -> None:
    gradient = multiplier_gradient(log_multiplier, threshold + excess, threshold)
    assert gradient < 0
    assert gradient == pytest.approx(-0.7 * math.exp(log_multiplier) * float(excess.mean()), rel=1e-9)


@given(threshold=st.floats(0.1, 1.0), share=st.floats(0.1, 0.9))
def test_the_multiplier_rises_seven_thirds_as_steeply_as_it_falls(threshold: float, share: float) -> None:
    gap = threshold * share
    falls = multiplier_gradient(0.0, tensor(threshold - gap), threshold)
    rises = multiplier_gradient(0.0, tensor(threshold + gap), threshold)
    assert rises / falls == pytest.approx(-7 / 3)


def test_the_multiplier_stands_still_where_the_weighted_gaps_balance() -> None:
    # 0.3·E[(τ − f)₊] = 0.7·E[(f − τ)₊]: 0.3·0.7 = 0.7·0.3
    assert multiplier_gradient(0.0, tensor(0.3, 1.3), 1.0) == pytest.approx(0.0, abs=1e-15)


def test_the_multipliers_weight_is_chosen_for_each_element_not_for_the_mean() -> None:
    # u = 0.1 and −0.3: (0.3·0.1 − 0.7·0.3) / 2; the mean's weight alone would give −0.07
    assert multiplier_gradient(0.0, tensor(0.1, 0.5), 0.2) == pytest.approx((0.03 - 0.21) / 2)


def test_the_multiplier_loss_reaches_nothing_but_the_multiplier() -> None:
    divergence = tensor(0.1, 0.5).requires_grad_()
    variable = torch.zeros((), dtype=torch.float64, requires_grad=True)
    multiplier_loss(variable, divergence, torch.tensor(0.2)).backward()
    assert divergence.grad is None
    assert variable.grad is not None


@given(steps=st.lists(st.tuples(vectors(st.floats(0.0, 4.0)), st.floats(0.0, 1.0)), min_size=1, max_size=10))
def test_the_multiplier_is_positive_after_any_updates(steps: list[tuple[Tensor, float]]) -> None:
    variable = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([variable], lr=0.5)
    for divergence, threshold in steps:
        optimizer.zero_grad()
        multiplier_loss(variable, divergence, torch.tensor(threshold)).backward()
        optimizer.step()
    assert float(variable.detach().exp()) > 0


@pytest.mark.parametrize(
    ("env_steps", "expected"), [(0, 0.0025), (50_000, 0.02125), (100_000, 0.04), (150_000, 0.04), (200_000, 0.04)]
)
def test_the_threshold_ramps_from_half_to_twice_the_exploration_noise(env_steps: int, expected: float) -> None:
    assert threshold_at(env_steps, 0.0025, 0.04, 100_000) == pytest.approx(expected, rel=1e-12)


@given(earlier=st.integers(0, 300_000), later=st.integers(0, 300_000), ramp=st.integers(1, 200_000))
def test_the_threshold_never_falls_and_stays_within_its_ends(earlier: int, later: int, ramp: int) -> None:
    first, second = (threshold_at(step, 0.005, 0.125, ramp) for step in sorted((earlier, later)))
    assert 0.005 <= first <= second <= 0.125 + 1e-15
