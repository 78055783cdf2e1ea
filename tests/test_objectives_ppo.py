"""The auxiliary advantage, the clipped surrogate, the advantage estimate and the return fit, against plain maths."""

from __future__ import annotations

import math
from typing import Any

import pytest
import reference_ppo as plain
import torch
from torch import Tensor

from o2o_lightning.methods.o2 import ppo
from o2o_lightning.nn.gaussian import GaussianActor, normal_entropy, normal_log_prob
from o2o_lightning.nn.normalizer import RewardScale
from o2o_lightning.objectives.ppo import (
    advantage_and_target,
    auxiliary_advantage,
    clipped_surrogate,
    combined_advantage,
    log_density_terms,
    normal_divergence,
    normalized_advantage,
)
from o2o_lightning.objectives.schedules import cosine_decay, linear_decay


def gaussian(dims: int, count: int = 200_000, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, log σ, and ``count`` actions of that Gaussian, float64."""
    torch.manual_seed(seed)
    mean, log_std = torch.randn(dims).double(), torch.randn(dims).double() * 0.5
    return mean.expand(count, dims), log_std, mean + log_std.exp() * torch.randn(count, dims).double()


def quadrature(points: int = 40_001) -> tuple[Tensor, Tensor]:
    """Standard normal grid and weights."""
    z = torch.linspace(-12, 12, points, dtype=torch.float64)
    weight = (-0.5 * z.square()).exp()
    return z, weight / weight.sum()


# ---- T12–T16: the auxiliary advantage ------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [1, 3, 6])
def test_the_unfloored_auxiliary_advantage_has_mean_zero_under_the_reference(dims: int) -> None:
    mean, log_std, action = gaussian(dims)
    terms = log_density_terms(action, mean, log_std).sum(-1)
    assert abs(float(terms.mean())) < 5 * math.sqrt(dims / 2 / len(terms))  # variance of ½(1 − z²) is ½


def test_terms_add_up_to_log_density_plus_entropy() -> None:
    mean, log_std, action = gaussian(4, 50)
    expected = plain.log_density(action, mean, log_std) + torch.distributions.Normal(mean, log_std.exp()).entropy().sum(
        -1
    )
    torch.testing.assert_close(log_density_terms(action, mean, log_std).sum(-1), expected)


def test_the_per_dimension_floor_shifts_the_mean_by_the_documented_bias() -> None:
    z, weight = quadrature()
    value = auxiliary_advantage(log_density_terms(z[:, None], torch.zeros(1), torch.zeros(1)))
    assert float((value * weight).sum()) == pytest.approx(0.02879, abs=1e-5)


@pytest.mark.parametrize(("dims", "bias", "within"), [(1, 0.02879, 2e-3), (2, 6.2e-4, 1.5e-3), (6, 0.0, 2e-3)])
def test_the_joint_floor_shifts_the_mean_by_less_the_more_dimensions(dims: int, bias: float, within: float) -> None:
    mean, log_std, action = gaussian(dims, 1_000_000)
    value = auxiliary_advantage(log_density_terms(action, mean, log_std), joint=True)
    assert float(value.mean()) == pytest.approx(bias, abs=within)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_actions_inside_the_unit_ellipsoid_are_better_than_average(dims: int) -> None:
    mean, log_std, action = gaussian(dims, 5000)
    inside = ((action - mean) / log_std.exp()).square().sum(-1) < dims
    assert torch.equal(log_density_terms(action, mean, log_std).sum(-1) > 0, inside)


@pytest.mark.parametrize("joint", [False, True])
def test_in_one_dimension_the_auxiliary_advantage_rises_strictly_with_the_log_density(joint: bool) -> None:
    # in more dimensions the per-dimension floor may reorder actions; the joint one never does
    mean, log_std, action = gaussian(1, 300)
    action = mean + (action - mean).clamp(-4 * log_std.exp(), 4 * log_std.exp())
    order = plain.log_density(action, mean, log_std).argsort()
    value = auxiliary_advantage(log_density_terms(action, mean, log_std), joint)[order]
    assert bool((value.diff() > 0).all())


def test_the_joint_form_rises_with_the_log_density_in_any_dimension() -> None:
    mean, log_std, action = gaussian(4, 300)
    order = plain.log_density(action, mean, log_std).argsort()
    value = auxiliary_advantage(log_density_terms(action, mean, log_std), joint=True)[order]
    assert bool((value.diff() >= 0).all())


def test_the_floor_of_a_dimension_is_minus_four_and_its_top_a_little_over_one_half() -> None:
    terms = torch.cat((torch.linspace(-60, 0.5, 2000), torch.tensor([0.0, 0.5]))).double()
    value = auxiliary_advantage(terms[:, None])
    assert float(value[-1]) == pytest.approx(0.51105, abs=1e-5)
    assert float(value[-2]) == pytest.approx(0.01815, abs=1e-5)
    assert float(value[0]) == pytest.approx(-4.0, abs=1e-6)
    assert bool((value[:2000].diff() >= 0).all())
    gap = value[:2000] - terms[:2000]
    assert float(gap.min()) == pytest.approx(0.01105, abs=1e-5) and bool((gap.diff() <= 1e-12).all())


@pytest.mark.parametrize(
    ("joint", "dims", "largest"),
    [(False, 1, 1.0221), (False, 6, 1.0221), (True, 1, 1.0221), (True, 2, 1.0001), (True, 3, 1.0)],
)
def test_with_scale_two_the_auxiliary_advantage_lies_between_minus_eight_and_one_deviation(
    joint: bool, dims: int, largest: float
) -> None:
    extremes = torch.tensor([0.5, -1e4], dtype=torch.float64)[:, None].expand(2, dims)
    top, bottom = (2.0 * auxiliary_advantage(extremes, joint)).tolist()
    assert top == pytest.approx(largest, abs=6e-5) and bottom == pytest.approx(-8.0, abs=1e-6)


@pytest.mark.parametrize("joint", [False, True])
def test_both_forms_agree_with_a_loop_over_samples(joint: bool) -> None:
    mean, log_std, action = gaussian(3, 40)
    found = auxiliary_advantage(log_density_terms(action, mean, log_std), joint)
    torch.testing.assert_close(found, plain.auxiliary(action, mean, log_std.exp(), joint))


def test_its_expectation_under_another_policy_is_minus_the_divergence_and_the_entropy_gap() -> None:
    """Proposition 4.4, with KL and entropies of ``torch.distributions``."""
    torch.manual_seed(0)
    normal = torch.distributions.Normal
    policy = normal(torch.randn(3).double() * 0.3, torch.rand(3).double() + 0.3)
    reference = normal(torch.zeros(3).double(), torch.rand(3).double() + 0.3)
    z, weight = quadrature()
    action = policy.mean + policy.stddev * z[:, None]  # dimensions are independent: a grid for each
    terms = log_density_terms(action, reference.mean.expand_as(action), reference.stddev.log())
    expectation = (terms * weight[:, None]).sum()
    gap = policy.entropy() - reference.entropy()
    divergence = torch.distributions.kl_divergence(policy, reference)
    assert float(-expectation) == pytest.approx(float((divergence + gap).sum()), rel=1e-9)


def test_divergence_and_entropy_agree_with_torch_distributions() -> None:
    mean, log_std, action = gaussian(4, 10)
    other, other_log_std = mean + 0.3 * torch.randn_like(mean), log_std + 0.2
    p, q = (torch.distributions.Normal(m, s.exp()) for m, s in ((mean, log_std), (other, other_log_std)))
    expected = torch.distributions.kl_divergence(p, q).sum(-1)
    torch.testing.assert_close(normal_divergence(mean, log_std, other, other_log_std), expected)
    torch.testing.assert_close(normal_entropy(log_std), p.entropy()[0].sum())
    torch.testing.assert_close(normal_log_prob(mean, log_std, action), plain.log_density(action, mean, log_std))


# ---- combination and surrogate ---------------------------------------------------------------------------------------


def policy_gradient(advantage: Tensor, seed: int = 0) -> Tensor:
    """Gradient of the surrogate at ratio 1 in the parameters of a Gaussian policy, flattened."""
    torch.manual_seed(seed)
    actor = GaussianActor(4, 2, (8,)).double()
    observation = torch.randn(len(advantage), 4).double()
    action = torch.rand(len(advantage), 2).double() * 2 - 1
    log_prob = actor.log_prob(observation, action)
    clipped_surrogate((log_prob - log_prob.detach()).exp(), advantage, 0.2).backward()
    return torch.cat([parameter.grad.flatten() for parameter in actor.parameters() if parameter.grad is not None])


def test_pairing_every_sample_with_every_auxiliary_term_cancels_at_ratio_one() -> None:
    torch.manual_seed(1)
    advantage, auxiliary = torch.randn(64).double(), torch.randn(64).double() * 3
    centred = auxiliary - auxiliary.mean()  # a common shift is undone by the normalisation
    plain_ppo = policy_gradient(normalized_advantage(advantage))
    paired = policy_gradient(normalized_advantage(combined_advantage(advantage, centred, 1.0, pairwise=True)))
    each = policy_gradient(normalized_advantage(combined_advantage(advantage, centred, 1.0)))
    cosine = torch.nn.functional.cosine_similarity
    assert float(cosine(paired, plain_ppo, dim=0)) == pytest.approx(1.0, abs=1e-9)
    assert float(cosine(each, plain_ppo, dim=0)) < 0.95


def test_pairing_puts_a_samples_own_advantage_in_its_row() -> None:
    found = combined_advantage(torch.tensor([1.0, 2.0]), torch.tensor([10.0, 30.0]), 0.5, pairwise=True)
    assert found.tolist() == [[6.0, 16.0], [7.0, 17.0]]


def test_dividing_by_one_plus_beta_changes_nothing_after_normalisation() -> None:
    torch.manual_seed(0)
    advantage, auxiliary, beta = torch.randn(500).double(), torch.randn(500).double(), 0.7
    ours = normalized_advantage(combined_advantage(advantage, auxiliary, beta))
    official = normalized_advantage((advantage + beta * auxiliary) / (1 + beta))
    torch.testing.assert_close(ours, official, atol=3e-5, rtol=0)


def test_the_surrogate_has_the_gradient_of_a_loop_over_samples() -> None:
    torch.manual_seed(0)
    old, advantage = torch.randn(100).double(), torch.randn(100).double()
    new = (old + 0.4 * torch.randn(100).double()).requires_grad_()
    copy = new.detach().clone().requires_grad_()
    loss, expected = clipped_surrogate((new - old).exp(), advantage, 0.2), plain.surrogate(copy, old, advantage, 0.2)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, new), torch.autograd.grad(expected, copy))


# ---- T29, T30: advantage estimate, returns ---------------------------------------------------------------------------


def rollout(seed: int, steps: int = 60) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    terminated, truncated = torch.rand(steps) < 0.1, torch.rand(steps) < 0.1
    columns = {name: torch.randn(steps).double() for name in ("value", "next_value", "reward")}
    return {**columns, "terminated": terminated, "ended": terminated | truncated}


def estimate(columns: dict[str, Tensor], discount: float, decay: float) -> tuple[Tensor, Tensor]:
    rows: dict[str, Any] = {name: column.unsqueeze(0) for name, column in columns.items()}
    advantage, target = advantage_and_target(**rows, discount=discount, gae_lambda=decay)
    return advantage[0], target[0]


@pytest.mark.parametrize("seed", range(5))
def test_the_advantage_estimate_is_the_plain_recursion(seed: int) -> None:
    columns = rollout(seed)
    expected = plain.gae(*(column.tolist() for column in columns.values()), gamma=0.99, lam=0.95)
    advantage, target = estimate(columns, 0.99, 0.95)
    # TorchRL holds γ and γλ in float32
    torch.testing.assert_close(advantage, torch.tensor(expected, dtype=torch.float64), rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(target, advantage + columns["value"])


def test_without_decay_the_advantage_is_the_one_step_error() -> None:
    columns = rollout(0)
    bootstrap = torch.where(columns["terminated"], 0.0, columns["next_value"])
    torch.testing.assert_close(
        estimate(columns, 0.9, 0.0)[0], columns["reward"] + 0.9 * bootstrap - columns["value"], rtol=2e-6, atol=2e-6
    )


@pytest.mark.parametrize("terminated", [True, False])
def test_with_full_decay_the_advantage_is_the_return_to_the_cut_and_a_timeout_bootstraps(terminated: bool) -> None:
    value = torch.tensor([0.3, -0.2, 0.5, 9.0])
    columns = {
        "value": value,
        "next_value": torch.tensor([-0.2, 0.5, 2.0, 7.0]),
        "reward": torch.tensor([1.0, 2.0, 3.0, 100.0]),
        "terminated": torch.tensor([False, False, terminated, False]),
        "ended": torch.tensor([False, False, True, True]),
    }
    tail = 0.0 if terminated else 0.5**3 * 2.0
    assert float(estimate(columns, 0.5, 1.0)[0][0]) == pytest.approx(1 + 0.5 * 2 + 0.25 * 3 + tail - 0.3)


def test_environments_side_by_side_do_not_leak_into_each_other() -> None:
    one, two = rollout(0), rollout(1)
    both: dict[str, Any] = {name: torch.stack((one[name], two[name])) for name in one}
    advantage, _ = advantage_and_target(**both, discount=0.99, gae_lambda=0.95)
    torch.testing.assert_close(advantage, torch.stack((estimate(one, 0.99, 0.95)[0], estimate(two, 0.99, 0.95)[0])))


@pytest.mark.parametrize("leak", [False, True])
def test_a_timeouts_return_stops_there_unless_it_leaks(leak: bool) -> None:
    torch.manual_seed(0)
    terminated, truncated, reward = torch.rand(40) < 0.1, torch.rand(40) < 0.15, torch.randn(40)
    truncated[[9, 39]], terminated[9] = True, False
    method = ppo.Reevaluate(bootstrap_tails=False, leak_returns=leak, discount=0.9)
    found = method.returns_to_go(reward, terminated, truncated)
    columns = (reward.tolist(), terminated.tolist(), truncated.tolist())
    expected = plain.returns_to_go(*columns, gamma=0.9, leak=leak)
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-6, atol=1e-6)
    following = 0.9 * float(found[10]) if leak else 0.0
    assert float(found[9]) == pytest.approx(float(reward[9]) + following, abs=1e-6)


# ---- reward scaling, schedules ---------------------------------------------------------------------------------------


def test_reward_scaling_is_by_the_deviation_of_all_running_returns_so_far() -> None:
    torch.manual_seed(0)
    reward, ended = torch.randn(80).double() * 3, torch.rand(80) < 0.1
    scale = RewardScale(0.99)
    parts, running = [], torch.zeros(1).double()
    for piece in (slice(0, 30), slice(30, 80)):  # a rollout boundary changes nothing
        scaled, running = scale(reward[None, piece], ended[None, piece], running)
        parts.append(scaled[0])
    expected = torch.tensor(plain.scaled_rewards(reward.tolist(), ended.tolist(), 0.99), dtype=torch.float64)
    torch.testing.assert_close(torch.cat(parts), expected)
    assert float(parts[0][0]) == pytest.approx(float(reward[0]))  # the first deviation is 1


def test_rates_fall_along_a_cosine_and_a_line() -> None:
    assert [cosine_decay(t, 8) for t in (0, 4, 8, 9)] == pytest.approx([1.0, 0.5, 0.0, 0.0], abs=1e-12)
    assert cosine_decay(2, 8) == pytest.approx((2 + math.sqrt(2)) / 4)
    assert [linear_decay(t, 8) for t in (0, 2, 8, 9)] == [1.0, 0.75, 0.0, 0.0]
