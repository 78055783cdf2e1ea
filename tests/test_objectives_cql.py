"""CQL's terms against closed forms (facts 3.1, 11.18, 11.19)."""

from __future__ import annotations

import math

import pytest
import torch

from o2o_lightning.objectives.cql import (
    conservative_gap,
    conservative_value,
    lagrange_loss,
    lagrange_weight,
    max_target_value,
    uniform_log_density,
)


def test_the_uniform_density_of_three_actions_is_an_eighth():
    assert math.exp(uniform_log_density(3)) == pytest.approx(1 / 8)


def test_importance_sampling_integrates_the_exponential_of_q_over_all_actions():
    """Monte Carlo: mean of exp(Q − log μ) over draws from μ is ∫ exp(Q(a)) da, here of a linear Q on [−1, 1]."""
    generator = torch.Generator().manual_seed(0)
    action = torch.rand(200_000, 1, generator=generator, dtype=torch.float64) * 2 - 1
    q = (1.5 * action).T[:, :, None]  # [E=1, N, B=1]
    density = torch.full((200_000, 1), uniform_log_density(1), dtype=torch.float64)
    value = conservative_value(q, density) - math.log(200_000)
    assert float(value) == pytest.approx(math.log((math.exp(1.5) - math.exp(-1.5)) / 1.5), abs=5e-3)


def test_equal_values_add_the_logarithm_of_their_number_times_the_temperature():
    q = torch.full((2, 30, 4), 7.0)
    torch.testing.assert_close(conservative_value(q, None, 2.0), torch.full((2, 4), 7.0 + 2 * math.log(30)))


def test_a_low_temperature_is_the_maximum():
    q = torch.tensor([1.0, 5.0, 2.0])[None, :, None]
    assert float(conservative_value(q, None, 1e-3)) == pytest.approx(5.0)


def test_no_gradient_reaches_the_policy_through_its_log_density():
    q = torch.randn(2, 5, 4, requires_grad=True)
    density = torch.randn(5, 4, requires_grad=True)
    conservative_value(q, density).sum().backward()
    assert density.grad is None
    torch.testing.assert_close(q.grad.sum(1), torch.ones(2, 4))


def test_the_gap_is_clipped_state_by_state_before_the_mean():
    value, q_data = torch.tensor([[-500.0, 10.0]]), torch.zeros(1, 2)
    assert conservative_gap(value, q_data).tolist() == [-245.0]
    assert conservative_gap(value, q_data, lower=-200.0).tolist() == [-95.0]
    assert conservative_gap(value, q_data, upper=4.0).tolist() == [-248.0]


def test_the_lagrange_weight_starts_at_e_and_never_exceeds_a_million():
    assert float(lagrange_weight(torch.tensor(1.0))) == pytest.approx(2.71828, rel=1e-5)
    assert float(lagrange_weight(torch.tensor(50.0))) == 1e6
    assert float(lagrange_weight(torch.tensor(-500.0))) == 0.0


def test_a_gap_above_its_target_raises_the_lagrange_weight():
    log_lagrange, gap = torch.tensor(0.0, requires_grad=True), torch.tensor([2.0, 3.0], requires_grad=True)
    lagrange_loss(log_lagrange, gap, target_gap=0.8, weight=5.0).backward()
    assert float(log_lagrange.grad) == pytest.approx(-0.5 * 5 * (1.2 + 2.2))
    assert gap.grad is None


def test_the_max_target_takes_the_best_action_of_the_more_pessimistic_critic():
    q = torch.tensor([[[1.0], [9.0], [4.0]], [[2.0], [0.0], [3.0]]])  # [E=2, N=3, B=1]
    log_prob = torch.tensor([[-1.0], [-2.0], [5.0]])
    assert max_target_value(q, log_prob).tolist() == [3.0]
    assert max_target_value(q, log_prob, torch.tensor(0.1)).tolist() == [2.5]
    assert max_target_value(q[:, :1], log_prob[:1]).tolist() == [1.0]
