"""Cal-QL: where the bound stands (T34, T44, T45, T48), what the labels are (T46, T47), and its multiplier (T51)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from every_method import HIDDEN, TASK, batches, noises
from torch import Tensor

from o2o_lightning.methods.cal_ql import CalQL
from o2o_lightning.methods.cql import CQL
from o2o_lightning.objectives.returns import calibration_returns

SIZES: dict[str, Any] = {"hidden": HIDDEN, "critic_hidden": HIDDEN, "samples": 3}


def gradients(kind: type[CQL], bound: float | Tensor, weight: float = 10.0, **options: Any) -> list[Tensor]:
    """The critics' gradients at the same networks, batch and noise, with a return-to-go of ``bound``."""
    torch.manual_seed(0)
    method = kind(**SIZES, conservative_weight=weight, **options)
    method.build(TASK)
    batch, noise = batches(method), noises(method)
    batch["return_to_go"] = torch.as_tensor(bound).expand(batch["reward"].shape)
    return list(torch.autograd.grad(method.step(batch, noise).value, list(method.critic.parameters())))


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_t44_a_bound_below_every_value_leaves_cql() -> None:
    assert same(gradients(CalQL, -torch.inf), gradients(CQL, 0.0))
    assert same(gradients(CalQL, -1e6), gradients(CQL, 0.0))


def test_t44_a_bound_above_every_value_stops_the_gradient_of_the_policys_actions_and_of_no_other() -> None:
    torch.manual_seed(0)
    method = CalQL(**SIZES)
    method.build(TASK)
    batch = batches(method)
    actions = torch.tanh(torch.randn(9, *batch["action"].shape)).requires_grad_()
    for bound, policy_counts in ((1e6, False), (-1e6, True)):
        batch["return_to_go"] = torch.full_like(batch["reward"], bound)
        (gradient,) = torch.autograd.grad(method.sampled_values(batch, actions).sum(), actions)
        assert gradient[:3].abs().min() > 0  # uniform actions, whatever the bound
        assert bool(gradient[3:].any()) is policy_counts


def test_t45_the_bound_is_of_values_and_not_of_values_less_their_log_density() -> None:
    torch.manual_seed(0)
    method = CalQL(**SIZES)
    method.build(TASK)
    batch, noise = batches(method), noises(method)
    batch["return_to_go"] = torch.full_like(batch["reward"], 0.05)
    loss = method.step(batch, noise)
    # formed again, action by action: max(Q, G) − log μ under the soft maximum
    observation, n = batch["observation"], 3
    policies = [method.actor.distribution(at) for at in (batch["next", "observation"], observation)]
    drawn = [policy.sample(noise[name]) for policy, name in zip(policies, ("following", "current"), strict=True)]
    gaps = []
    for member in range(2):
        terms = []
        for k in range(n):
            q = method.critic(observation, noise["uniform"][k])[member]
            terms.append(q + 3 * torch.log(torch.tensor(2.0)))
            for action, log_prob in drawn:
                q = method.critic(observation, action[k])[member]
                terms.append(torch.maximum(q, batch["return_to_go"]) - log_prob[k])
        soft = torch.logsumexp(torch.stack(terms), 0)
        gaps.append((soft - method.critic(observation, batch["action"])[member]).mean())
    torch.testing.assert_close(loss.metrics["conservative_gap"], torch.stack(gaps), rtol=1e-5, atol=1e-5)


def test_t48_without_calibration_no_return_changes_the_loss_and_with_it_one_does() -> None:
    for calibrate in (False, True):
        low, high = (gradients(CalQL, bound, calibrate=calibrate) for bound in (-1e6, 1e6))
        assert same(low, high) is not calibrate


@pytest.mark.parametrize("weighted", [True, False])
def test_t51_the_multiplier_rises_where_the_gap_is_too_wide_and_the_weight_multiplies_once_or_not_at_all(
    weighted: bool,
) -> None:
    method = CalQL(**SIZES, conservative_weight=5.0, lagrange_gap=0.8, lagrange_weighted=weighted)
    method.build(TASK)
    for gap, rises in ((0.9, True), (0.7, False)):
        gaps = torch.full((2,), gap, requires_grad=True)
        slopes = torch.autograd.grad(method.penalty(gaps), (gaps, method.log_lagrange))
        torch.testing.assert_close(slopes[0], torch.full((2,), torch.e * (5.0 if weighted else 1.0)))  # α′ = e at first
        assert bool(slopes[1] < 0) is rises


def test_t47_an_episodes_label_does_not_ask_whether_it_was_terminated_or_ran_out_of_time() -> None:
    method, reward = CalQL(), torch.tensor([1.0, 2.0, 4.0])
    end, none = torch.tensor([False, False, True]), torch.zeros(3, dtype=torch.bool)
    ended, late = (method.returns_to_go(reward, *flags) for flags in ((end, none), (none, end)))
    assert ended.tolist() == late.tolist() == pytest.approx([1 + 0.99 * (2 + 0.99 * 4), 2 + 0.99 * 4, 4.0])


REWARDS = torch.tensor([-5.0, -5.0, -5.0, -5.0, 5.0, -5.0, -5.0, -5.0, 5.0, -5.0])
ENDS = torch.tensor([0, 0, 1, 0, 0, 1, 0, 0, 1, 0]).bool()  # failed; a success before the end; one at the end; cut off


def test_t46_a_failed_episode_is_worth_its_reward_for_ever() -> None:
    returns = calibration_returns(REWARDS, ENDS, 0.99, failure_reward=-5.0)
    torch.testing.assert_close(returns[:3], torch.full((3,), -500.0))
    torch.testing.assert_close(returns[3:6], torch.tensor([-5 + 0.99 * (5 + 0.99 * -5), 5 + 0.99 * -5, -5.0]))
    torch.testing.assert_close(returns[6:9], torch.tensor([-5 + 0.99 * (-5 + 0.99 * 5), -5 + 0.99 * 5, 5.0]))


def test_t46_by_its_last_reward_an_episode_fails_in_spite_of_an_earlier_success() -> None:
    returns = calibration_returns(REWARDS, ENDS, 0.99, failure_reward=-5.0, failure_by="last")
    torch.testing.assert_close(returns[:6], torch.full((6,), -500.0))
    assert returns[8] == 5.0


@pytest.mark.parametrize("failure", [None, -5.0])
def test_an_episode_that_the_recording_cut_has_no_bound(failure: float | None) -> None:
    assert calibration_returns(REWARDS, ENDS, 0.99, failure)[9] == -torch.inf
    assert calibration_returns(REWARDS, ENDS, 0.99, failure)[:9].isfinite().all()
