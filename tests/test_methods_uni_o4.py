"""Uni-O4: clones that differ, PPO on the data's states, the gate, the hand-over (T105–T111)."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import HIDDEN, A, Checkpoint, Rows, S, descend, draw, gradients_of, losses, noise_of, ready, transitions
from every_method import optimizer_of
from torch import Tensor, nn
from torch.distributions import Independent, Normal
from torch.nn.functional import softplus

from o2o_lightning.engine.engine import Engine
from o2o_lightning.engine.stacked import StackedEngine
from o2o_lightning.engine.whole import order_of
from o2o_lightning.errors import UserError
from o2o_lightning.methods.method import Follow, Method, Moment, Task
from o2o_lightning.methods.uni_o4 import Offline, UniO4
from o2o_lightning.nn.gaussian import GaussianHead, ReleasedHead
from o2o_lightning.nn.normalizer import Normalizer
from o2o_lightning.objectives.imitation import disagreement_loss
from o2o_lightning.objectives.ppo import normalized_advantage
from o2o_lightning.policies.d4rl_group import policy_group

B, FIRST, LAST = 24, 4, 16
WIDTHS = dict.fromkeys(("hidden", "critic_hidden", "value_hidden", "model_hidden"), HIDDEN)
HANDED_ON = Checkpoint(lambda: GaussianHead(S, A, HIDDEN), phase="offline")


def offline(**options: Any) -> Any:
    """Two clones that PPO improves from the fifth update on, in double precision."""
    method = ready(Offline(**{"members": 2, "models": 3, "horizon": 3, "gate_every": 1} | WIDTHS | options))
    method.first, method.last = FIRST, LAST
    return method


def density(policy: Any, s: Tensor, squeezed: bool = False) -> Independent:
    """The policy as the framework's own distribution, from its network's raw output."""
    mean, raw = policy.body(s).chunk(2, -1)
    inside = raw.tanh().tanh() if squeezed else raw.tanh()
    return Independent(Normal(mean.tanh(), (-5.0 + 2.5 * (inside + 1.0)).exp()), 1)


def tensors(module: nn.Module) -> list[Tensor]:
    return [value.detach().clone() for value in module.state_dict().values()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(map(torch.equal, one, other))


def by_gradients(method: Any, value: Tensor) -> dict[str, Tensor]:
    method.zero_grad(set_to_none=True)
    value.backward()
    return gradients_of(method)


def assert_alike(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys() and found
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=name)


# ---- the policy ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [GaussianHead, ReleasedHead])
def test_the_head_acts_in_numpy_as_it_does_in_torch_and_its_density_is_the_frameworks(family: Any) -> None:
    torch.manual_seed(0)
    policy, s, noise = family(S, A, HIDDEN), torch.randn(B, S), torch.randn(B, A)
    known = density(policy, s, squeezed=family is ReleasedHead)
    action = policy.sampled(s, noise)
    torch.testing.assert_close(policy.log_prob(s, action), known.log_prob(action))
    torch.testing.assert_close(policy.density(s, action, noise).entropy, known.entropy())
    found = policy.perform(s.numpy(), noise.numpy()), policy.act(s.numpy())
    for mine, expected in zip(found, (action, known.mean.clamp(-1, 1)), strict=True):
        assert mine.dtype == np.float32
        np.testing.assert_allclose(mine, expected.detach().numpy(), atol=1e-6)


def test_t106_the_hand_over_leaves_mean_and_sigma_as_they_are_but_for_the_released_code() -> None:
    s = draw(0, B)["s"]
    method, released = (ready(UniO4(released_std=on), source=HANDED_ON, spread=0.0) for on in (False, True))
    torch.manual_seed(0)
    (mean, log_std), *found = (policy(s) for policy in (HANDED_ON.actor().double(), method.actor, released.actor))
    for other in found:
        torch.testing.assert_close(other[0], mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(found[0][1], log_std, rtol=0, atol=1e-6)
    assert bool(((found[1][1] - log_std).abs() > 0.01).any())


def test_the_released_head_squeezes_sigma_as_the_released_networks_were_measured_to() -> None:
    log_std = torch.tensor([-5.0, -4.0, -3.0, -2.5, -2.0, -1.0, -0.5, 0.0])
    raw = torch.atanh(((log_std + 5.0) / 2.5 - 1.0).clamp(-1 + 1e-7, 1 - 1e-7))
    heads = [family(S, 8, HIDDEN) for family in (GaussianHead, ReleasedHead)]
    for head, expected in zip(
        heads,
        (log_std, torch.tensor([-4.404, -3.843, -2.993, -2.5, -2.007, -1.157, -0.840, -0.596])),
        strict=True,
    ):
        with torch.no_grad():
            head.body.linears[-1].weight.zero_()
            head.body.linears[-1].bias[8:] = raw
        torch.testing.assert_close(head(torch.zeros(1, S))[1][0].detach(), expected, rtol=0, atol=6e-4)


def test_a_recorded_dataset_describes_no_policy_that_d4rl_has_no_words_for() -> None:
    assert policy_group(GaussianHead(S, A, HIDDEN), Normalizer.identity(S)) == {}


# ---- cloning, values, the model ------------------------------------------------------------------------------------


def test_t110_clones_that_are_alike_pay_nothing_for_it_and_get_equal_gradients() -> None:
    one = torch.randn(B).double()
    log_prob = one.repeat(3, 1).requires_grad_()
    loss = disagreement_loss(log_prob, 0.1)
    loss.backward()
    torch.testing.assert_close(loss.detach(), -3 * one.mean())
    assert log_prob.grad is not None and bool((log_prob.grad == log_prob.grad[0]).all())


def test_a_clone_that_is_less_likely_than_another_is_pulled_the_more() -> None:
    log_prob = torch.tensor([[-1.0], [-2.0]], requires_grad=True)
    loss = disagreement_loss(log_prob, 0.1)
    loss.backward()
    assert loss.item() == pytest.approx(1.0 + 2.0 + 0.1 * 1.0)
    torch.testing.assert_close(log_prob.grad, torch.tensor([[-1.0], [-1.1]]))


def test_the_fit_descends_the_formulas() -> None:
    method, rows = offline(), draw(0, B)
    found = descend(method, method.fit_step(transitions(rows), {}))
    s, a, s2 = rows["s"], rows["a"], rows["s2"]
    likelihoods = [density(clone, s).log_prob(a) for clone in method.clones]
    loss = torch.zeros(()).double()
    for i, own in enumerate(likelihoods):
        other = likelihoods[1 - i].detach()
        loss = loss - (own + 0.1 * (own - torch.where(own > other, own, other))).mean()
    with torch.no_grad():
        least = method.target_critic(s, a).min(0).values
        target = rows["r"] + 0.99 * (1 - rows["d"]) * method.value(s2)
    x = least - method.value(s)
    loss = loss + ((0.7 - (x < 0).double()).abs() * x**2).mean()
    for q in method.critic(s, a):
        loss = loss + 0.5 * ((q - target) ** 2).mean()
    for member in method.model.members:
        out = member(torch.cat((s, a), -1))
        loss = loss + ((s + out[:, :S] - s2) ** 2).mean()
        loss = loss + (softplus(out[:, S]) - rows["d"] * out[:, S]).mean()
    assert_alike(found, by_gradients(method, loss))


# ---- the improvement -----------------------------------------------------------------------------------------------


def improved(method: Any, rows: Rows, noise: Any) -> Tensor:
    """PPO's loss of both candidates, from the formulas."""
    loss, s = torch.zeros(()).double(), rows["s"]
    for clone, candidate, drawn in zip(method.clones, method.candidates, noise["action"], strict=True):
        with torch.no_grad():
            known = density(clone, s)
            action = (known.mean + known.stddev * drawn).clamp(-1, 1)
            advantage = method.critic(s, action).min(0).values - method.value(s)
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-5)
        ratio = (density(candidate, s).log_prob(action) - known.log_prob(action)).exp()
        loss = loss - torch.minimum(ratio * advantage, ratio.clamp(0.75, 1.25) * advantage).mean()
    return loss


def test_the_improvement_descends_the_formulas_and_nothing_but_the_candidates() -> None:
    method, rows = offline(), draw(0, B)
    noise = noise_of(method, (B, A))
    found = descend(method, method.improvement_step(transitions(rows), noise))
    assert {name.split(".")[0] for name in found} == {"candidates"}
    assert_alike(found, by_gradients(method, improved(method, rows, noise)))


def test_t107_at_the_end_of_the_decay_the_rates_and_the_clip_are_zero_and_no_candidate_moves() -> None:
    method, rows = offline(), draw(0, B)
    assert [method.left(Moment(k)) for k in (0, FIRST, 10, LAST)] == [1.0, 1.0, 0.5, 0.0]
    assert method.schedules(Moment(10)) == {"clip_range": 0.125} and method.schedules(Moment(LAST)) == {"clip_range": 0}
    rates = method.rates(Moment(LAST))
    assert rates == {"candidate_0": 0.0, "candidate_1": 0.0}
    groups = [
        {"params": list(part.parameters()), "lr": rates[name], "name": name}
        for name, (part, _) in method.learners().items()
        if name in rates
    ]
    before = tensors(method.candidates)
    descend(method, method.improvement_step(transitions(rows), noise_of(method, (B, A))))
    method.optimizer(groups).step()
    assert same(before, tensors(method.candidates))


def test_t108_the_advantage_is_normalised_so_that_a_constant_in_v_changes_nothing() -> None:
    method, rows = offline(), draw(0, B)
    noise = noise_of(method, (B, A))
    before = method.improvement_step(transitions(rows), noise).value
    with torch.no_grad():
        method.value.body.linears[-1].bias += 30.0
    torch.testing.assert_close(method.improvement_step(transitions(rows), noise).value, before)
    found = normalized_advantage(7.0 + 3.0 * torch.randn(B).double())
    assert float(found.mean()) == pytest.approx(0.0, abs=1e-9) and float(found.std()) == pytest.approx(1.0, abs=1e-4)


# ---- the gate ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gate", ["paired", "record"])
def test_t105_a_clone_is_replaced_by_its_candidate_where_that_scores_higher_and_nowhere_else(gate: str) -> None:
    method, verdicts = offline(gate=gate), set()
    for k in range(FIRST, LAST):
        rows = draw(k, B)
        record, clones, candidates = method.record.clone(), *map(list, _both(method))
        scores = [[float(method.score(net, rows["s"])) for net in nets] for nets in (method.candidates, method.clones)]
        for _ in losses(method, transitions(rows), noise_of(method, (B, A), k), Moment(k), rate=1.0):
            pass
        for i in range(2 if k > FIRST else 0):  # first the candidates become copies of the clones
            bar = float(record[i]) if gate == "record" else scores[1][i]
            accepted = scores[0][i] > bar
            verdicts.add(accepted)
            assert bool(method.accepted[i]) is accepted
            assert same(tensors(method.clones[i]), candidates[i] if accepted else clones[i])
            if gate == "record":
                assert float(method.record[i]) == (scores[0][i] if accepted else float(record[i]))
        assert same(tensors(method.actor), tensors(method.clones[int(method.record.argmax())]))
    assert verdicts == {True, False}


def _both(method: Any) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
    return [tensors(net) for net in method.clones], [tensors(net) for net in method.candidates]


def test_t111_equal_policies_score_the_same_to_the_bit_and_the_paired_gate_stays_shut() -> None:
    method, rows = offline(), draw(0, B)
    twin = copy.deepcopy(method.clones[0])
    assert float(method.score(twin, rows["s"]) - method.score(method.clones[0], rows["s"])) == 0.0
    for _ in losses(method, transitions(rows), noise_of(method, (B, A)), Moment(FIRST), rate=0.0):
        pass
    assert method.accepted.tolist() == [0.0, 0.0]


def test_t109_states_behind_a_predicted_end_do_not_count() -> None:
    method, s = offline(horizon=4), draw(0, B)["s"]
    policy, total, visited, ends = method.clones[0], 0.0, 0, 0
    for row in range(B):
        state, model = s[row : row + 1], method.model.members[row // (B // 3)]
        for _ in range(4):
            action = density(policy, state).mean.clamp(-1, 1)
            total, visited = total + float(method.critic(state, action).detach().min()), visited + 1
            out = model(torch.cat((state, action), -1))
            state = state + out[:, :S]
            if float(out[0, S].detach()) > 0:
                ends += 1
                break
    assert 0 < ends < B
    assert float(method.score(policy, s)) == pytest.approx(total / visited)


def test_a_candidate_whose_states_explode_in_the_model_is_not_let_through() -> None:
    method, rows = offline(horizon=40, gate="record"), draw(0, B)
    with torch.no_grad():
        for member in method.model.members:
            for part in member.parameters():
                part.mul_(1e12)
    with torch.no_grad():
        state = method.gate_step(transitions(rows), noise_of(method, (B, A))).state
    assert state["accepted"].tolist() == [0.0, 0.0]


def test_where_the_data_covers_the_actions_what_is_let_through_is_better_in_truth() -> None:
    torch.manual_seed(0)
    rates = dict.fromkeys(("cloning_lr", "improvement_lr", "critic_lr", "value_lr"), 1e-3)
    widths = dict.fromkeys(WIDTHS, (32,))
    method = Offline(members=2, models=2, gate_every=40, improvement=0.4, discount=0.9, polyak=0.05, **rates, **widths)  # type: ignore[arg-type]
    method.horizon = 10
    method.build(Task(1, 1, total=600))
    place, move = torch.rand(5000, 1) * 4 - 2, (0.4 * torch.randn(5000, 1)).clamp(-1, 1)
    columns = {"observation": place, "action": move, ("next", "observation"): place + 0.5 * move}
    columns |= {"reward": -(place + 0.5 * move).square()[:, 0], ("next", "terminated"): torch.zeros(5000)}

    def cost() -> float:
        """How far from the origin the policy is over ten steps."""
        at, total = torch.linspace(-2, 2, 41)[:, None], 0.0
        for _ in range(10):
            at = at + 0.5 * method.actor.mode(at).detach()
            total += float(at.square().mean())
        return total

    optimizer, engine = optimizer_of(method), Engine(method)
    for update in range(600):
        if update == method.first:
            cloned = cost()
        drawn = torch.randint(5000, (256,))
        batch = {name: column[drawn] for name, column in columns.items()}
        for loss in engine.losses(Moment(update), batch, {"action": torch.randn(2, 256, 1)}):
            optimizer.zero_grad(set_to_none=True)
            loss.value.backward()
            optimizer.step()
    assert cost() < 0.5 * cloned


# ---- online --------------------------------------------------------------------------------------------------------


def rollout_rows() -> Any:
    rows = draw(3, B)
    drawn = {name: torch.randn(B).double() for name in ("advantage", "value", "value_target")}
    return transitions(rows, log_prob=torch.full((B,), -2.0).double(), **drawn), rows


def test_online_the_ratio_and_the_value_are_clipped_by_the_same_number_and_the_entropy_is_that_of_each_state() -> None:
    method = ready(UniO4(clip=0.3), source=HANDED_ON)
    batch, rows = rollout_rows()
    known = density(method.actor, rows["s"])
    ratio = (known.log_prob(rows["a"]) + 2.0).exp()
    clipped = ratio.clamp(0.7, 1.3)
    loss = (
        -torch.minimum(ratio * batch["advantage"], clipped * batch["advantage"]).mean() - 0.01 * known.entropy().mean()
    )
    assert_alike(descend(method, method.policy_step(batch, {})), by_gradients(method, loss))
    v, old, target = method.value(rows["s"]), batch["value"], batch["value_target"]
    moved = torch.minimum(torch.maximum(v, old - 0.3), old + 0.3)
    loss = torch.maximum((v - target) ** 2, (moved - target) ** 2).mean()
    assert_alike(descend(method, method.value_step(batch, {})), by_gradients(method, loss))


def test_the_one_sigma_of_other_policies_cannot_be_capped_here() -> None:
    with pytest.raises(UserError, match="std_cap"):
        UniO4(std_cap=0.1)


# ---- networks that follow by a tensor ------------------------------------------------------------------------------


def test_a_network_follows_by_a_tensor_whose_value_is_read_when_it_follows() -> None:
    target, source = nn.Linear(3, 2), nn.Linear(3, 2)
    before, wanted, rate = tensors(target), tensors(source), torch.zeros(())
    Engine(Method()).follow(Follow(target, source, rate))
    assert same(tensors(target), before)
    rate.fill_(1.0)
    Engine(Method()).follow(Follow(target, source, rate))
    assert same(tensors(target), wanted)


def test_each_of_stacked_seeds_follows_by_its_own_rate() -> None:
    target, source = nn.Module(), nn.Module()
    for module in (target, source):
        module.weight = nn.Parameter(torch.randn(2, 3, 3))
        module.bias = nn.Parameter(torch.randn(2, 3))
    before, wanted = tensors(target), tensors(source)
    StackedEngine(Method(), 2).follow(Follow(target, source, torch.tensor([0.0, 1.0])))
    for found, old, new in zip(tensors(target), before, wanted, strict=True):
        assert torch.equal(found[0], old[0]) and torch.equal(found[1], new[1])


def test_a_recording_does_not_depend_on_what_a_tensor_rate_was_when_it_was_made() -> None:
    method = offline()
    before = order_of(method, Moment(FIRST + 1))
    method.accepted.fill_(1.0)
    assert order_of(method, Moment(FIRST + 1)) == before
