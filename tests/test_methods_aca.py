"""ACA: the offline losses, the surgery at hand-over, and the log-density in Q (T53–T59)."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from by_hand import A, S, draw, noise_of, ready, transitions
from every_method import TASK, Networks, batches, noises
from torch import Tensor
from torch.distributions import Normal

from o2o_lightning.engine.engine import Engine
from o2o_lightning.errors import UserError
from o2o_lightning.methods import aca
from o2o_lightning.methods.method import Moment
from o2o_lightning.nn.squashed_gaussian import SquashedGaussian

SIZES: dict[str, Any] = {"hidden": (8, 8), "critic_hidden": (8, 8)}


def online(**options: Any) -> tuple[Any, Any]:
    """ACA, and the offline method that it starts from."""
    torch.manual_seed(0)
    before = aca.Offline(**SIZES, temperature=0.3)
    before.build(TASK)
    method = aca.ACA(**SIZES, **options)
    method.build(TASK, Networks("offline", before))
    return method, before


def test_the_offline_losses_are_the_textbooks():
    method, batch = ready(aca.Offline(**SIZES)), draw(0, 24)
    noise, alpha = noise_of(method, (24, A)), method.log_alpha.exp().detach()
    at, behind = method.actor.distribution(batch["s"]), method.actor.distribution(batch["s2"])
    _, following = behind.sample(noise["target"])
    z, z2 = (method.baseline(s, s[:, :0]) for s in (batch["s"], batch["s2"]))
    y = batch["r"] + 0.99 * (1 - batch["d"]) * (following + z2.min(0).values - alpha * following)
    expected = sum((at.log_prob(batch["a"]).detach() + each - y.detach()).square().mean() for each in z)
    torch.testing.assert_close(method.baseline_step(transitions(batch), noise).value, expected)
    action, log_prob = at.sample(noise["policy"])
    q = method.critic(batch["s"], action).min(0).values
    sac = (alpha * log_prob - q).mean()
    likelihood = at.log_prob(batch["a"]).mean()
    temperature_loss = -method.log_alpha * (log_prob.detach().mean() - A)
    expected = 30.0 / q.detach().abs().mean() * sac - likelihood + temperature_loss
    found = method.policy_step(transitions(batch), noise).value
    torch.testing.assert_close(found, expected)
    learning = [*method.actor.parameters(), method.log_alpha]
    pairs = zip(torch.autograd.grad(found, learning), torch.autograd.grad(expected, learning), strict=True)
    assert all(torch.allclose(one, other) for one, other in pairs)


def test_t53_the_rebuilt_critics_are_the_baselines_and_blind_to_the_action():
    method, before = online()
    s, a = torch.randn(32, S), (torch.rand(32, A) * 2 - 1).requires_grad_()
    found = method.critic(s, a)
    torch.testing.assert_close(found, before.baseline(s, a[:, :0]), rtol=1e-6, atol=1e-6)
    assert not torch.autograd.grad(found.sum(), a)[0].any()
    for net, target in zip(method.critic.parameters(), method.target_critic.parameters(), strict=True):
        assert torch.equal(net, target)


def gaussian(mean: float, std: float) -> SquashedGaussian:
    return SquashedGaussian(torch.tensor([[mean]]), torch.tensor([[math.log(std)]]))


def test_t54_at_the_start_the_critics_best_action_is_the_densest_of_the_offline_policy():
    method, _ = online()
    s = torch.randn(1, S).expand(4001, S)
    actions = torch.tanh(torch.randn(4001, A))
    q = method.valued(method.critic, s, actions).min(0).values
    assert int(q.argmax()) == int(method.offline_actor.distribution(s).log_prob(actions).argmax())


def test_t55_and_t56_the_log_density_is_clipped_softly_at_beta_deviations():
    policy, width = gaussian(0.0, 0.1), 3.0
    bound = float(Normal(0.0, 0.1).log_prob(torch.tensor(0.3)))
    assert bound == pytest.approx(float(Normal(0.0, 0.1).log_prob(torch.tensor(0.0))) - width**2 / 2, rel=1e-5)
    u = torch.linspace(0.0, 1.5, 100)[:, None]
    density = policy.log_prob(torch.tanh(u))
    clipped = aca.soft_log_density(policy, torch.tanh(u), width)
    assert bool((clipped >= bound).all()) and bool((clipped.diff() <= 0).all())
    torch.testing.assert_close(clipped[0], density[0], rtol=0, atol=0.02)  # far above the bound
    torch.testing.assert_close(
        clipped, torch.log(density.double().exp() + math.exp(bound)).float(), rtol=1e-4, atol=1e-4
    )


def test_t57_w_falls_linearly_to_its_floor():
    method, _ = online(fade_updates=1000, weight_floor=0.5)
    found = [method.schedules(Moment(update))["weight_now"] for update in (0, 250, 500, 5000)]
    assert found == pytest.approx([1.0, 0.75, 0.5, 0.5])
    constant, _ = online(weight_floor=1.0)
    assert {constant.schedules(Moment(update))["weight_now"] for update in (0, 10**6)} == {1.0}


def test_t58_the_offline_policy_stands_still_and_its_density_moves_the_actor():
    method, _ = online()
    before = {name: value.clone() for name, value in method.offline_actor.state_dict().items()}
    learning: list[Tensor] = [
        p
        for part, _ in method.learners().values()
        for p in (part.parameters() if hasattr(part, "parameters") else [part])
    ]
    adam = torch.optim.Adam(learning, 1e-2)
    for update in range(10):
        for loss in Engine(method).losses(Moment(update), batches(method), noises(method)):
            adam.zero_grad()
            loss.value.backward()
            adam.step()
    assert all(torch.equal(value, before[name]) for name, value in method.offline_actor.state_dict().items())
    fresh, _ = online()
    a = torch.zeros(4, A, requires_grad=True)
    q = fresh.valued(fresh.critic, torch.randn(4, S), a, frozen=True)
    assert torch.autograd.grad(q.sum(), a)[0].abs().min() > 0  # though R itself is blind to it


def test_t59_the_temperature_is_one_again():
    method, before = online()
    assert float(before.log_alpha.detach().exp()) == pytest.approx(0.3)
    assert float(method.log_alpha.detach().exp()) == 1.0
    assert method.gradient_limits() == {"actor": 0.25}


def test_without_baselines_it_is_refused():
    with pytest.raises(UserError, match="state baselines of offline=aca"):
        aca.ACA(**SIZES).build(TASK)
