"""FamO2O: the balance, its embedding, and who learns from what (T123–T127)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from by_hand import HIDDEN, A, S, draw, noise_of, ready, transitions
from test_methods_rivals_gradients import assert_descends, squashed
from torch import Tensor
from torch.distributions import Normal

from o2o_lightning.errors import UserError
from o2o_lightning.methods.fam_o2o import FamO2O
from o2o_lightning.methods.method import Follow, Moment
from o2o_lightning.nn.actors import build_policy
from o2o_lightning.nn.balanced import embedded

B = 24


def fam_o2o(**options: Any) -> Any:
    return ready(FamO2O(hidden=HIDDEN, **options))


def test_t123_a_balance_is_six_numbers_by_three_wavelengths_and_equal_ones_are_equal() -> None:
    b = torch.tensor([1.0, 4.5, 1.0])
    found = embedded(b)
    assert found.shape == (3, 6) and torch.equal(found[0], found[2]) and not torch.equal(found[0], found[1])
    for k in range(3):
        angle = b / 10_000 ** (2 * k / 6)
        torch.testing.assert_close(found[:, [k, k + 3]], torch.stack((angle.sin(), angle.cos()), 1))


def test_t124_a_balance_lies_within_its_range_however_sure_the_network_is() -> None:
    method = fam_o2o(lowest=8.0, highest=14.0)
    found = method.actor.scaled(method.actor.balance.mode(torch.randn(500, S).double() * 100))
    assert 8.0 <= float(found.detach().min()) < 9.0 and 13.0 < float(found.detach().max()) <= 14.0
    torch.testing.assert_close(
        method.actor.scaled(torch.tensor([[-1.0], [0.0], [1.0]])), torch.tensor([8.0, 11.0, 14.0])
    )


def parts(method: Any, rows: Any, noise: Any, balance: Tensor, numbers: Tensor) -> Tensor:
    """IQL's policy loss with these β, the state beside these six numbers."""
    with torch.no_grad():
        lead = method.target_critic(rows["s"], rows["a"]).amin(0) - method.value(rows["s"])
        weight = torch.exp(balance * lead).clamp(max=100.0)
    mean, log_std = method.actor.family(torch.cat((rows["s"], numbers), -1))
    return -(weight * Normal(mean, log_std.exp()).log_prob(rows["a"]).sum(-1)).mean()


def test_t125_a_range_of_one_number_is_iql_with_that_inverse_temperature() -> None:
    method, rows = fam_o2o(lowest=3.0, highest=3.0), draw(0, B)
    noise, beta = noise_of(method, (B, A)), torch.full((B,), 3.0).double()
    for uniform in (True, False):
        method.uniform_balance = uniform
        found = method.policy_step(transitions(rows), noise).value
        assert_descends(method, found, (parts(method, rows, noise, beta, embedded(beta)), [method.actor.family]))


@pytest.mark.parametrize("uniform", [True, False])
def test_t126_the_policies_learn_of_any_balance_or_of_those_chosen_and_the_balance_nothing_from_it(
    uniform: bool,
) -> None:
    method, rows = fam_o2o(uniform_balance=uniform), draw(0, B)
    noise = noise_of(method, (B, A))
    drawn = squashed(method.actor.balance, rows["s"], noise["chosen"])[0].detach()
    b = 3.0 + 2.0 * (noise["any"] if uniform else drawn)[:, 0]
    found = method.policy_step(transitions(rows), noise).value
    assert_descends(method, found, (parts(method, rows, noise, b, embedded(b)), [method.actor.family]))


def test_t127_the_balance_climbs_the_value_of_what_it_makes_the_policies_do_which_learn_nothing_from_it() -> None:
    method, rows = fam_o2o(), draw(0, B)
    noise, s, family = noise_of(method, (B, A)), rows["s"], method.actor.family
    unit, log_prob = squashed(method.actor.balance, s, noise["balance"])
    mean, log_std = family(torch.cat((s, embedded(3.0 + 2.0 * unit[:, 0])), -1))
    action = (mean + log_std.detach().exp() * noise["action"]).clamp(-1, 1)
    alpha = method.log_balance.exp().detach()
    loss = (alpha * log_prob - method.target_critic(s, action).amin(0)).mean()
    temperature_loss = -method.log_balance * (log_prob.detach().mean() - 0.5)
    found = method.balance_step(transitions(rows), noise).value
    expected = (loss, [method.actor.balance]), (temperature_loss, [method.log_balance])
    assert_descends(method, found, *expected)


def test_v_moves_first_then_the_balance_the_policies_and_q() -> None:
    method = fam_o2o()
    *steps, last = method.update(Moment(0))
    assert [step.__name__ for step in steps] == ["value_step", "balance_step", "policy_step", "critic_step"]
    assert isinstance(last, Follow) and last.target is method.target_critic


def test_it_acts_by_the_mode_of_its_balance_and_is_rebuilt_from_its_specification() -> None:
    actor = fam_o2o().actor.float()
    states, noise = (torch.randn(B, size, generator=torch.Generator().manual_seed(size)) for size in (S, A))
    again = build_policy(actor.spec.to_dict())
    again.load_state_dict(actor.state_dict())
    b = 3.0 + 2.0 * torch.tanh(actor.balance(states)[0])[:, 0]
    mean, log_std = actor.family(torch.cat((states, embedded(b)), -1))
    expected = mean.clamp(-1, 1), (mean + log_std.exp() * noise).clamp(-1, 1)
    for policy in (actor, again):
        found = policy.mode(states), policy.sampled(states, noise)
        in_numpy = policy.act(states.numpy()), policy.perform(states.numpy(), noise.numpy())
        for one, other, wanted in zip(found, in_numpy, expected, strict=True):
            torch.testing.assert_close(one, wanted, rtol=0, atol=1e-5)
            np.testing.assert_allclose(other, wanted.detach().numpy(), rtol=0, atol=1e-5)


def test_a_range_that_is_none_is_refused() -> None:
    with pytest.raises(UserError, match=r"--model\.highest at least --model\.lowest"):
        FamO2O(lowest=2.0, highest=1.0)
