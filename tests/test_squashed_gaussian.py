"""The squashed Gaussian against quadrature, torch.distributions and numbers by hand (facts 1.2, 11.1-11.5)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.distributions import Independent, Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

from o2o_lightning.nn.actors import build_policy
from o2o_lightning.nn.squashed_gaussian import SquashedGaussian, SquashedGaussianActor

LIMIT = 0.9999


def gaussian(mean: float, std: float, dims: int = 1, rows: int = 1, dtype: torch.dtype = torch.float64):
    shape = (rows, dims)
    return SquashedGaussian(torch.full(shape, mean, dtype=dtype), torch.full(shape, math.log(std), dtype=dtype))


def actor(seed: int = 0, hidden: tuple[int, ...] = (32, 32)) -> SquashedGaussianActor:
    torch.manual_seed(seed)
    made = SquashedGaussianActor(4, 2, hidden)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return made


@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.37), (0.5, 0.6), (-1.2, 0.2), (0.0, 1.0)])
def test_the_density_integrates_to_one(mean: float, std: float):
    actions = torch.linspace(-LIMIT, LIMIT, 400_001, dtype=torch.float64)[:, None]
    density = gaussian(mean, std).log_prob(actions).exp()
    assert float(torch.trapezoid(density, actions[:, 0])) == pytest.approx(1.0, abs=2e-4)


def test_sampled_actions_carry_the_log_probability_of_an_independent_implementation():
    torch.manual_seed(0)
    mean, std = torch.randn(64, 3, dtype=torch.float64), torch.rand(64, 3, dtype=torch.float64) + 0.1
    other = TransformedDistribution(Independent(Normal(mean, std), 1), [TanhTransform(cache_size=1)])
    policy, noise = SquashedGaussian(mean, std.log()), torch.randn(64, 3, dtype=torch.float64)
    action, log_prob = policy.sample(noise)
    torch.testing.assert_close(action, torch.tanh(mean + std * noise))
    torch.testing.assert_close(log_prob, other.log_prob(action), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(policy.log_prob(action.clamp(-0.99, 0.99)), other.log_prob(action.clamp(-0.99, 0.99)))


def test_several_draws_from_one_distribution_have_one_row_a_draw():
    policy = gaussian(0.1, 0.3, dims=2, rows=5)
    action, log_prob = policy.sample(torch.randn(7, 5, 2, dtype=torch.float64))
    assert action.shape == (7, 5, 2) and log_prob.shape == (7, 5)
    assert policy.log_prob(action).shape == (7, 5)


def test_the_log_probability_of_a_sample_stays_exact_where_tanh_rounds_to_one():
    action, log_prob = gaussian(12.0, 0.5, dtype=torch.float32).sample(torch.zeros(1, 1))
    assert float(action) == 1.0
    # −log σ − ½ log 2π − log(1 − tanh²12), the last from 4e^{−24}
    expected = -math.log(0.5) - 0.5 * math.log(2 * math.pi) - (math.log(4) - 24)
    assert float(log_prob) == pytest.approx(expected, rel=1e-6)


def test_a_given_action_at_the_bound_is_clipped_before_atanh():
    log_prob = gaussian(0.0, 1.0).log_prob(torch.tensor([[1.0]], dtype=torch.float64))
    # atanh(0.9999) = 4.95172 and log(1 − 0.9999²) = −8.5172
    assert float(log_prob) == pytest.approx(-0.5 * 4.95172**2 - 0.5 * math.log(2 * math.pi) + 8.5172, abs=1e-4)
    at_both_ends = gaussian(0.3, 1.0, dtype=torch.float32).log_prob(torch.tensor([[1.0], [-1.0]]))
    assert torch.isfinite(at_both_ends).all()


def test_the_anchor_is_clipped_so_that_its_log_probability_is_finite_at_saturation():
    policy = gaussian(20.0, 0.1, dtype=torch.float32)
    anchor = policy.anchor()
    assert float(anchor) == pytest.approx(0.9999) and float(policy.mode()) == 1.0
    assert torch.isfinite(policy.log_prob(anchor)).all()


def test_equal_policies_have_no_divergence_unless_actions_saturate():
    torch.manual_seed(0)
    noise = torch.randn(4096, 6)
    near = gaussian(0.4, 0.3, dims=6, dtype=torch.float32)
    action, log_prob = near.sample(noise)
    assert float(action.abs().max()) < LIMIT
    assert float((log_prob - near.log_prob(action)).abs().max()) < 1e-4
    assert float((log_prob - near.log_prob(action)).mean().abs()) < 1e-5
    saturated = gaussian(6.0, 0.3, dims=6, dtype=torch.float32)
    action, log_prob = saturated.sample(noise)
    assert float((log_prob - saturated.log_prob(action)).mean()) > 1.0


@pytest.mark.parametrize(("mean", "std", "at_mean", "peak", "gain"), [
    (0.5, 0.1, 0.4621, 0.4695, 0.004), (0.5, 0.37, 0.4621, 0.577, 0.074), (0.5, 0.6, 0.4621, 0.789, 0.285),
])  # fmt: skip
def test_the_mean_s_tanh_is_not_the_mode_of_the_density(mean, std, at_mean, peak, gain):
    policy = gaussian(mean, std)
    actions = torch.linspace(-0.999, 0.999, 199_801, dtype=torch.float64)[:, None]
    density = policy.log_prob(actions)
    assert float(policy.mode()) == pytest.approx(at_mean, abs=1e-4)
    assert float(actions[density.argmax(), 0]) == pytest.approx(peak, abs=1e-3)
    assert float(density.max() - policy.log_prob(policy.mode())) == pytest.approx(gain, abs=1e-3)


def test_a_wide_policy_is_bimodal():
    actions = torch.linspace(0, 0.999, 99_901, dtype=torch.float64)[:, None]
    density = gaussian(0.0, 0.8).log_prob(actions)
    assert float(actions[density.argmax(), 0]) == pytest.approx(0.736, abs=1e-3)


def test_a_new_actor_is_nearly_centred_with_a_deviation_of_one_over_e():
    torch.manual_seed(0)
    with torch.no_grad():
        policy = SquashedGaussianActor(11, 3).distribution(torch.randn(256, 11))
    assert float(policy.mean.abs().max()) < 0.05
    torch.testing.assert_close(policy.log_std.exp(), torch.full((256, 3), math.exp(-1)), rtol=0.05, atol=0)


def test_hidden_layers_start_like_plain_linear_layers_and_the_head_ten_times_smaller_than_xavier():
    torch.manual_seed(0)
    linears = SquashedGaussianActor(11, 3).body.linears
    for layer, inputs in zip(linears[:3], (11, 256, 256), strict=True):
        bound = 1 / math.sqrt(inputs)
        assert 0.9 * bound < float(layer.weight.abs().max()) <= bound
        assert float(layer.bias.abs().max()) <= bound and float(layer.bias.abs().max()) > 0
    assert float(linears[3].weight.abs().max()) <= 0.01 * math.sqrt(6 / (256 + 6))
    assert not linears[3].bias.any()


def test_scale_and_offset_of_the_log_deviation_are_trained():
    made = actor()
    made.distribution(torch.randn(8, 4)).log_std.sum().backward()
    assert float(made.log_std_offset.grad) == 16.0
    assert made.log_std_scale.grad is not None


def test_the_clamp_of_the_log_deviation_has_no_gradient_outside():
    made = actor()
    with torch.no_grad():
        made.log_std_offset.fill_(30.0)
    policy = made.distribution(torch.randn(8, 4))
    assert torch.equal(policy.log_std, torch.full((8, 2), 2.0))
    policy.log_std.sum().backward()
    assert float(made.log_std_offset.grad) == 0.0


def test_acting_in_numpy_equals_torch():
    made, observation = actor(), np.random.default_rng(0).standard_normal((5, 4), dtype=np.float32)
    with torch.no_grad():
        policy = made.distribution(torch.from_numpy(observation))
        np.testing.assert_allclose(made.act(observation), policy.mode().numpy(), rtol=1e-5, atol=1e-6)
        noise = np.random.default_rng(1).standard_normal((5, 2), dtype=np.float32)
        sampled, _ = policy.sample(torch.from_numpy(noise))
    explored = made.explore(observation, np.random.default_rng(1))
    np.testing.assert_allclose(explored, sampled.numpy(), rtol=1e-5, atol=1e-6)
    assert explored.dtype == np.float32 and made.act(observation[0]).shape == (2,)


def test_numpy_actions_stay_legal_however_far_the_mean_is():
    made = actor()
    with torch.no_grad():
        made.body.linears[-1].bias[:2] = 50.0
    observation = np.zeros((3, 4), np.float32)
    np.testing.assert_allclose(made.act(observation), 1.0, rtol=1e-6)
    assert np.abs(made.explore(observation, np.random.default_rng(0))).max() <= 1.0


def test_a_checkpoint_s_description_rebuilds_the_actor():
    made = actor(hidden=(8, 8, 8))
    again = build_policy(made.spec.to_dict())
    assert isinstance(again, SquashedGaussianActor)
    again.load_state_dict(made.state_dict())
    observation = torch.randn(3, 4)
    assert torch.equal(made.mode(observation), again.mode(observation))
