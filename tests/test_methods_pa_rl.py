"""PA-RL: what its search finds, whom it asks, what its critics learn (T134–T138)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from by_hand import HIDDEN, TASK, A, Checkpoint, S, draw, noise_of, ready, transitions
from torch import Tensor, nn
from torch.distributions import Normal

from o2o_lightning.errors import UserError
from o2o_lightning.methods.method import Follow, Moment
from o2o_lightning.methods.pa_rl import PARL
from o2o_lightning.nn.actor import Actor, DeterministicActor
from o2o_lightning.nn.critics import Critics, expected_value
from o2o_lightning.nn.gaussian import GaussianActor
from o2o_lightning.nn.mixture import Mixture
from o2o_lightning.nn.squashed_gaussian import SquashedGaussianActor
from o2o_lightning.objectives.action_search import ascended, best_actions
from o2o_lightning.objectives.distributional import two_hot, two_hot_loss

B = 24
SEARCH: dict[str, Any] = {"candidates": 6, "kept": 3, "samples": 2, "ascent_steps": 3, "ascent_rate": 0.05}
POLICIES: dict[str, Any] = {
    "gaussian": lambda: GaussianActor(S, A, HIDDEN),
    "squashed": lambda: SquashedGaussianActor(S, A, HIDDEN),
    "deterministic": lambda: DeterministicActor(S, A, HIDDEN),
    "mixture": lambda: Mixture([SquashedGaussianActor(S, A, HIDDEN) for _ in range(2)]),
}


def pa_rl(policy: str = "gaussian", **options: Any) -> Any:
    made = PARL(**SEARCH | {"critic_hidden": HIDDEN, "critics": 3, "new_critics": True} | options)
    return ready(made, source=Checkpoint(POLICIES[policy], phase="offline"))


@pytest.mark.parametrize("policy", POLICIES)
def test_t134_t136_the_optimised_action_beats_every_candidate_and_stays_in_the_box(policy: str):
    method, s = pa_rl(policy, ascent_rate=2.0), draw(0, B)["s"]
    noise = 2.0 * noise_of(method, (B, A))["current"]
    actions, values = method.optimised(s, noise)
    own = method.actor.candidates(s, noise, method.spread)
    assert bool((values[0] >= method.valued(s, own).mean(0).amax(0)).all())
    torch.testing.assert_close(values, method.valued(s, actions).mean(0))
    assert bool((values.diff(dim=0) <= 0).all()) and float(actions.detach().abs().max()) <= 1.0


def test_t135_without_ascent_it_is_the_best_of_the_candidates():
    generator = torch.Generator().manual_seed(0)
    actions = torch.rand(32, B, A, generator=generator) * 2 - 1
    value = lambda at: -(at - 0.3).square().sum(-1)  # noqa: E731
    for steps, rate in ((0, 1.0), (7, 0.0)):
        found, values = best_actions(value, actions, 5, steps, rate)
        nearest = (actions - 0.3).square().sum(-1).argmin(0)
        assert torch.equal(found[0], actions[nearest, torch.arange(B)])
        torch.testing.assert_close(values, value(found))


def test_the_ascent_goes_uphill_and_keeps_the_best_place_that_it_passed():
    start = torch.zeros(1, 1, 1)
    towards, reached = ascended(lambda at: -(at - 0.5).square().sum(-1), start, 40, 0.1)
    assert float(towards) == pytest.approx(0.5, abs=1e-3) and float(reached) == pytest.approx(0.0, abs=1e-6)
    away, _ = ascended(lambda at: -(at - 0.5).square().sum(-1), start + 0.49, 3, 1.5)  # each step overshoots by more
    assert float(away) == pytest.approx(0.49)


def test_t137_of_the_policy_nothing_is_asked_but_actions_and_a_loss_of_imitation():
    class BlackBox(Actor):
        def __init__(self) -> None:
            nn.Module.__init__(self)
            self.spec = DeterministicActor(S, A, HIDDEN).spec
            self.shift = nn.Parameter(torch.zeros(A))

        def candidates(self, observation: Tensor, noise: Tensor, spread: float) -> Tensor:
            return (self.shift + noise).clamp(-1, 1)

        def misfit(self, observation: Tensor, action: Tensor) -> Tensor:
            return (action - self.shift).abs().sum(-1)

    method = PARL(**SEARCH, critic_hidden=HIDDEN, critics=3)
    method.build(TASK, Checkpoint(BlackBox, phase="offline"))
    batch, noise = transitions(draw(0, B), return_to_go=torch.zeros(B)).float(), noise_of(method, (B, A))
    noise = {name: value.float() for name, value in noise.items()}
    for step in (method.critic_step, method.policy_step):
        assert bool(step(batch, noise).value.isfinite())
    action = method.act(np.zeros(S, np.float32), np.random.default_rng(0))
    assert action.shape == (A,) and action.dtype == np.float32


def test_t138_a_two_hot_target_has_the_values_own_mean_and_is_clipped_to_the_range():
    support = (-100.0, 0.0, 128)
    value = torch.tensor([-100.0, -63.27, -0.001, 0.0, -250.0, 3.0], dtype=torch.float64)
    weight = two_hot(value, support)
    centres = torch.linspace(*support, dtype=torch.float64)
    torch.testing.assert_close((weight * centres).sum(-1), value.clamp(-100, 0))
    assert bool(((weight > 0).sum(-1) <= 2).all()) and bool((weight.sum(-1) - 1).abs().max() < 1e-9)
    logits = torch.randn(3, 6, 128, dtype=torch.float64)
    by_hand = -(weight * logits.log_softmax(-1)).sum(-1).mean(-1).sum()
    torch.testing.assert_close(two_hot_loss(logits, value, support), by_hand)
    torch.testing.assert_close(expected_value(weight.log(), support), value.clamp(-100, 0))


def test_distributional_critics_are_rebuilt_from_their_specification():
    critics = Critics(S, A, HIDDEN, True, 3, (-5.0, 5.0, 11))
    spec: Any = critics.spec.to_dict()
    again = Critics(**spec)
    again.load_state_dict(critics.state_dict())
    s, a = torch.randn(B, S), torch.randn(B, A)
    assert torch.equal(again(s, a), critics(s, a)) and torch.equal(again.first(s, a), critics(s, a)[0])
    mean = critics.logits(s, a).softmax(-1) @ torch.linspace(-5, 5, 11)
    torch.testing.assert_close(critics(s, a), mean)


@pytest.mark.parametrize("policy", ["gaussian", "squashed", "deterministic"])
@pytest.mark.parametrize("support", [None, (-4.0, 4.0, 9)])
def test_every_loss_is_the_papers(policy: str, support: Any):
    method, rows = pa_rl(policy, support=support, ascent_steps=1), draw(0, B)
    noise, bound = noise_of(method, (B, A)), torch.randn(B).double()
    batch = transitions(rows, return_to_go=bound)
    q = method.critic

    def values(net: Any, s: Tensor, a: Tensor) -> Tensor:  # [E, K, B] of actions [K, B, A], one action after the other
        return torch.stack([net(s, each) for each in a], 1)

    def drawn(s: Tensor, noise: Tensor) -> Tensor:
        if policy == "deterministic":
            return (method.actor(s) + 0.1 * noise).clamp(-1, 1)
        mean, log_std = method.actor(s)
        u = mean + log_std.exp() * noise
        return torch.tanh(u) if policy == "squashed" else u.clamp(-1, 1)

    def best(s: Tensor, noise: Tensor) -> Tensor:
        mean = lambda at: values(q, s, at).mean(0)  # noqa: E731
        own = drawn(s, noise).detach()
        order = mean(own).argsort(0, descending=True)[:3]
        kept = torch.stack([own[order[k], torch.arange(B)] for k in range(3)]).requires_grad_(True)
        moved = (kept + 0.05 * torch.autograd.grad(mean(kept).sum(), kept)[0]).clamp(-1, 1).detach()
        both = torch.cat((kept.detach(), moved))
        return both[mean(both).argmax(0), torch.arange(B)]

    pair = noise["subset"].argsort()[:2]
    next_q = method.target_critic(rows["s2"], best(rows["s2"], noise["following"]))[pair]
    y = rows["r"] + 0.99 * (1 - rows["d"]) * next_q.min(0).values
    data = q(rows["s"], rows["a"])
    if support is None:
        td = (data - y.detach()).square().mean(-1).sum() / 3
    else:
        td = two_hot_loss(q.logits(rows["s"], rows["a"]), y.detach(), support) / 3
    policy_actions = torch.cat((drawn(rows["s"], noise["current"][:2]), drawn(rows["s2"], noise["following"][:2])))
    others = values(q, rows["s"], policy_actions.detach()).clamp(min=bound)
    everything = torch.cat((values(q, rows["s"], noise["uniform"]), others, data[:, None]), 1)
    expected = td + 0.005 * (everything.logsumexp(1) - data).mean()
    assert_same_gradients(method.critic, method.critic_step(batch, noise).value, expected)

    a = best(rows["s"], noise["current"])
    if policy == "deterministic":
        expected = (method.actor(rows["s"]) - a).square().sum(-1).mean()
    elif policy == "gaussian":
        mean, log_std = method.actor(rows["s"])
        expected = -Normal(mean, log_std.exp()).log_prob(a).sum(-1).mean()
    else:
        mean, log_std = method.actor(rows["s"])
        u = torch.atanh(a.clamp(-0.9999, 0.9999))
        expected = -(Normal(mean, log_std.exp()).log_prob(u) - torch.log(1 - torch.tanh(u) ** 2)).sum(-1).mean()
    assert_same_gradients(method.actor, method.policy_step(batch, noise).value, expected)


def assert_same_gradients(net: nn.Module, loss: Tensor, expected: Tensor) -> None:
    found, wanted = (torch.autograd.grad(value, list(net.parameters())) for value in (loss, expected))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-10)


def test_critics_are_taken_where_there_are_any_unless_new_ones_are_wanted():
    class Full(Checkpoint):
        def has(self, name: str) -> bool:
            return True

    source = Full(POLICIES["gaussian"], lambda: Critics(S, A, HIDDEN, False, 4), "offline")
    counts = []
    for new in (False, True):
        method = PARL(**SEARCH, critic_hidden=HIDDEN, critics=3, new_critics=new)
        method.build(TASK, source)
        counts.append(method.critic.spec.count)
    assert counts == [4, 3]
    with pytest.raises(UserError, match=r"candidates 6: kept and samples"):
        PARL(**SEARCH | {"kept": 7})


@pytest.mark.parametrize(("subset", "says"), [(4, "--model.subset 4: there are 3 critics"), (0, "--model.subset 0")])
def test_more_critics_than_there_are_or_none_are_refused(subset: int, says: str):
    with pytest.raises(UserError, match=says):
        pa_rl(subset=subset)


def test_with_no_cadence_the_policy_stays_as_it_is():
    method = pa_rl(policy_every=0)
    steps = [item for moment in range(3) for item in method.update(Moment(moment)) if not isinstance(item, Follow)]
    assert steps == [method.critic_step] * 3
