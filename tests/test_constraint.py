"""A constraint that binds: the controlled multiplier, the bounded penalty, the policy that waits for its critics."""

import math
from typing import Any

import pytest
import sac_by_hand
import td3_by_hand
import torch
from by_hand import losses, transitions
from hypothesis import given
from hypothesis import strategies as st
from reference_td3 import td3_target

from o2o_lightning.methods.method import Moment
from o2o_lightning.methods.o2 import sac, td3
from o2o_lightning.methods.o2.constraint import Multiplier
from o2o_lightning.objectives.constraint import bounded_penalty, controlled_multiplier

GAINS, WEIGHTS, LIMITS = (0.1, 0.5), (0.3, 0.7), (1e-2, 100.0)


def controlled(integral: float, divergence: float, threshold: float = 0.5) -> tuple[float, float]:
    state, f, tau = (torch.tensor(value, dtype=torch.float64) for value in (integral, divergence, threshold))
    found = controlled_multiplier(state, f, tau, GAINS, WEIGHTS, LIMITS)
    return float(found[0]), float(found[1])


@pytest.mark.parametrize(
    ("divergence", "integral", "log_multiplier"),
    [
        (0.5, 1.0, 1.0),  # at the threshold nothing moves
        (0.75, 1.035, 1.285),  # half above: 0.1·0.7·½, and 0.5·½ more
        (0.0, 0.97, 0.47),  # no divergence: −0.1·0.3, and −0.5 more
        (50.0, 1.21, 2.71),  # beyond four times the threshold as at four times
    ],
)
def test_the_controlled_multiplier_has_its_closed_form(
    divergence: float, integral: float, log_multiplier: float
) -> None:
    assert controlled(1.0, divergence) == pytest.approx((integral, log_multiplier))


@given(st.lists(st.floats(-1.0, 1e3, allow_subnormal=False), max_size=30), st.floats(0.0, 10.0))
def test_the_controlled_multiplier_never_leaves_its_limits(divergences: list[float], threshold: float) -> None:
    integral = 0.0
    for divergence in divergences:
        integral, log_multiplier = controlled(integral, divergence, threshold)
        for value in (integral, log_multiplier):
            assert math.log(LIMITS[0]) - 1e-9 <= value <= math.log(LIMITS[1]) + 1e-9


def test_a_violation_that_lasted_leaves_nothing_to_unwind() -> None:
    integral = 0.0
    for _ in range(500):
        integral, _ = controlled(integral, 5.0)
    assert controlled(integral, 0.0)[0] == pytest.approx(math.log(100.0) - 0.03)


def test_a_penalty_is_bounded_on_both_sides_in_its_unit() -> None:
    penalty = torch.tensor([-9.0, -0.5, 0.5, 9.0])
    unit = torch.tensor(2.0)
    assert bounded_penalty(penalty, unit, 0.5).tolist() == [-1.0, -0.5, 0.5, 1.0]
    assert bounded_penalty(penalty, unit, 0.0).tolist() == [0.0] * 4
    assert torch.equal(bounded_penalty(penalty, unit, None), penalty)


@pytest.mark.parametrize("by_hand", [td3_by_hand, sac_by_hand])
def test_a_controlled_multiplier_moves_after_the_step_that_it_weighs(by_hand: Any) -> None:
    paper, method = by_hand.online(), by_hand.online()
    method.multiplier = Multiplier(start=1.7, rule="pi")
    method.register_buffer("integral", method.log_multiplier.detach().clone())
    batch, noise = transitions(by_hand.draw()), by_hand.noise_of(method)
    before = float(method.log_multiplier.detach())
    *_, (expected, gradients) = losses(paper, batch, noise)
    *_, (loss, found) = losses(method, batch, noise)
    excess = float(loss.metrics["divergence"].detach().mean()) / by_hand.THRESHOLD - 1.0
    weight, clipped = 0.7 if excess > 0 else 0.3, min(max(excess, -1.0), 3.0)
    assert float(method.integral) == pytest.approx(before + 0.02 * weight * clipped)
    assert float(method.log_multiplier.detach()) == pytest.approx(before + (0.02 * weight + 0.5) * clipped)
    actor = {name for name in gradients if name.startswith("actor.")}
    assert actor and all(torch.equal(found[name], gradients[name]) for name in actor)
    assert torch.equal(loss.metrics["divergence"], expected.metrics["divergence"])


def test_a_limit_of_zero_leaves_the_critics_target_without_a_penalty() -> None:
    batch, method = td3_by_hand.draw(), td3_by_hand.online(multiplier=1e3, penalty_limit=0.0)
    nets, noise = td3_by_hand.plain(method), td3_by_hand.noise_of(method)
    target = method.critic_step(transitions(batch), noise).metrics["target"]
    torch.testing.assert_close(target, td3_target(nets, batch, noise["target"], 0.99), rtol=1e-10, atol=0)


@pytest.mark.parametrize("module", [td3, sac])
def test_policy_and_multiplier_wait_for_the_critics(module: Any) -> None:
    method = module.Online(policy_after=100)
    waiting, moving = Moment(41, 99), Moment(41, 100)
    assert [method.rates(moment)["actor"] for moment in (waiting, moving)] == [0.0, method.actor_lr]
    assert [method.multiplier_due(moment, True) for moment in (waiting, moving)] == [False, True]
    assert module.Online().rates(waiting) == {}
