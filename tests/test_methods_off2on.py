"""Off2On: what the replay draws, the density ratio, the ensemble's losses (T33, T36–T43)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference_sac as plainly
import torch
from by_hand import HIDDEN, TASK, A, Checkpoint, S, draw, noise_of, ready, transitions
from test_replay_buffer import half
from torch import Tensor
from torch.distributions import Normal

from o2o_lightning.cli.main import main
from o2o_lightning.data.online import OnlineData
from o2o_lightning.errors import UserError
from o2o_lightning.methods.cql import CQL
from o2o_lightning.methods.off2on import Off2On, Offline
from o2o_lightning.nn.critics import Critics
from o2o_lightning.nn.mixture import Mixture
from o2o_lightning.nn.squashed_gaussian import SquashedGaussianActor
from o2o_lightning.objectives.density_ratio import balanced_priority, jensen_shannon_loss, tempered
from o2o_lightning.objectives.ensembles import members_least
from o2o_lightning.phases.online import Online
from o2o_lightning.replay.balanced import Balanced, Entry
from o2o_lightning.replay.sum_tree import SumTree

B = 24


def mixture(members: int = 2) -> Mixture:
    return Mixture([SquashedGaussianActor(S, A, HIDDEN) for _ in range(members)])


SOURCE = Checkpoint(mixture, lambda: Critics(S, A, HIDDEN, False, 4), "offline")


def off2on(**options: Any) -> Any:
    return ready(Off2On(ratio_hidden=HIDDEN, **options), source=SOURCE)


def balanced(capacity: int = 10, rows: int = 30, **entry: Any) -> tuple[Balanced, Any]:
    _, store, ring = half(rows, capacity=capacity)
    return Balanced(store, ring, Entry(**entry)), ring


def add(ring: Any, count: int) -> None:
    for i in range(count):
        ring.add(np.full(3, 1000 + i), np.zeros(2), float(i), np.full(3, 1001 + i), False, False)


# ---- the replay --------------------------------------------------------------------------------------------------


def test_t36_rows_are_drawn_as_often_as_their_priorities_say_and_a_heavy_one_always():
    tree, generator, count = SumTree(300), np.random.default_rng(0), np.zeros(300)
    weights = generator.uniform(0.1, 1.0, 300)
    weights[7], weights[100:120] = 2 * weights.sum() / 64, 0.0
    tree.set(np.arange(300), weights)
    for _ in range(2000):
        found = tree.find((np.arange(64) + generator.uniform(size=64)) * tree.total / 64)
        assert 7 in found
        np.add.at(count, found, 1)
    np.testing.assert_allclose(count / count.sum(), weights / weights.sum(), atol=6e-4)
    assert not count[100:120].any()


def test_t37_what_is_new_enters_at_the_largest_priority_that_there_ever_was():
    rule, ring = balanced(rows=30, share=0.75)
    generator, entered = torch.Generator().manual_seed(0), []
    for largest in (0.001, 50.0, 0.5):
        add(ring, 1)
        rule.rows((rule.store, ring), 8, generator)
        entered.append(float(rule.tree[30 + len(ring) - 1 : 30 + len(ring)][0]))
        rule.prioritize(torch.full((8,), largest))
    # 29 rows have a successor: 29 · 0.75 / (0.25 · 1000)
    assert entered == pytest.approx([0.087, 0.087, 50.0])


def test_a_new_row_may_enter_as_the_online_rows_are_on_average():
    rule, ring = balanced(rule="mean")
    generator = torch.Generator().manual_seed(0)
    add(ring, 4)
    rule.rows((rule.store, ring), 8, generator)
    rule.tree.set(30 + np.arange(4), np.array([1.0, 2.0, 3.0, 6.0]))
    add(ring, 2)
    rule.rows((rule.store, ring), 8, generator)
    assert rule.tree[34:36].tolist() == [3.0, 3.0]


def test_t38_an_update_changes_the_priorities_of_the_rows_it_has_drawn_and_no_others():
    rule, ring = balanced()
    add(ring, 6)
    rows = rule.rows((rule.store, ring), 8, torch.Generator().manual_seed(0))
    before = rule.tree[:40].copy()
    rule.prioritize(torch.linspace(2.0, 3.0, 8))
    changed = np.flatnonzero(rule.tree[:40] != before)
    assert {*changed} == {*rule.drawn} and len(rows) == 24
    drawn = torch.from_numpy(rule.drawn)
    assert torch.equal(rows[:8], torch.cat((rule.store.rows, ring.rows))[drawn])
    assert torch.isin(rows[8:16, 0], rule.store["observation"][:, 0]).all()
    assert (rows[16:, 0] >= 1000).all()  # observations of online rows begin there


def test_priorities_are_saved_by_age_and_go_on_in_a_larger_ring():
    rule, ring = balanced(capacity=4)
    generator = torch.Generator().manual_seed(0)
    add(ring, 6)  # rows 4 and 5 have taken the places of 0 and 1
    rule.rows((rule.store, ring), 8, generator)
    rule.tree.set(30 + np.array([2, 3, 0, 1]), np.array([2.0, 3.0, 4.0, 5.0]))
    add(ring, 1)  # not let in yet: where row 2 has been
    other, larger = balanced(capacity=9)
    larger.load_state(ring.state())
    other.load_state_dict(rule.state_dict())
    assert other.tree[30:33].tolist() == [3.0, 4.0, 5.0]
    for each in (rule, other):
        each.rows((each.store, each.ring), 8, torch.Generator().manual_seed(1))
    assert sorted(rule.tree[30:34]) == sorted(other.tree[30:34])
    assert rule.tree.total == pytest.approx(other.tree.total)


def test_t43_online_rows_are_seen_once_at_once_and_then_as_often_as_any():
    rule, ring = balanced(capacity=3000, rows=20_000, share=0.5)
    generator, shares = torch.Generator().manual_seed(0), []
    for _ in range(3000):
        add(ring, 1)
        rule._admit()
        rule.drawn = rule._by_priority(256, generator)
        shares.append(float(rule.prioritize(torch.ones(256))["online_share"].mean()))
    # n/(N + n) of those that have been drawn, and the newest, whose priority is 20
    expected = [(n + 20) / (20_000 + n + 20) for n in range(2000, 3000)]
    assert np.mean(shares[2000:]) == pytest.approx(np.mean(expected), rel=0.05)


def test_a_method_and_its_replay_go_together(pendulum: str, capsys: pytest.CaptureFixture[str]):
    assert main(["fit", "--phase", "online", "online=rlpd", "--data.mix", "balanced", "--data.dataset", pendulum]) == 2
    assert "online=off2on" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"entry\.share 1\.0"):
        balanced(share=1.0)
    data = OnlineData(dataset=pendulum, mix="balanced")
    assert data.entry.share == 0.5


def test_no_other_policy_becomes_an_ensemble(pendulum: str, capsys: pytest.CaptureFixture[str]):
    line = ["fit", "--phase", "all", "offline=td3_bc", "online=off2on", "--data.dataset", pendulum]
    assert main(line) == 2
    assert "online=off2on: it goes on from a mixture of several" in capsys.readouterr().err


# ---- the density ratio -------------------------------------------------------------------------------------------


def test_t39_the_ratio_that_descends_the_bound_is_that_of_the_two_distributions():
    offline, online = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])
    raw = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.Adam([raw], lr=0.02)
    for _ in range(2000):
        w = torch.nn.functional.softplus(raw)
        loss = -(offline * (2 / (w + 1)).log()).sum() - (online * (2 * w / (w + 1)).log()).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(w.detach(), online / offline, rtol=1e-3, atol=1e-3)
    rows = [torch.repeat_interleave(torch.arange(3), (p * 10).round().long()) for p in (offline, online)]
    found = jensen_shannon_loss(*(w.detach()[row] for row in rows))
    torch.testing.assert_close(found, loss.detach(), rtol=1e-4, atol=1e-4)
    assert float(jensen_shannon_loss(torch.ones(8), torch.ones(8))) == pytest.approx(0.0, abs=1e-6)


def test_t42_a_factor_on_every_ratio_moves_no_priority():
    w, offline = torch.rand(64) * 3 + 0.1, torch.rand(64) + 0.1
    one, seven = (balanced_priority(c * w, tempered(c * offline, 5.0).mean(), 5.0) for c in (1.0, 7.0))
    torch.testing.assert_close(one, seven)
    extreme = balanced_priority(torch.tensor([0.0, 1e30]), torch.tensor(1.0), 5.0)
    assert extreme.tolist() == [pytest.approx(1e-3), pytest.approx(1e3)]


@pytest.mark.parametrize("head", ["softplus", "relu"])
def test_w_begins_at_one(head: Any):
    method = Off2On(ratio_hidden=HIDDEN, ratio_head=head)
    method.build(TASK, SOURCE)
    torch.nn.init.zeros_(method.ratio.linears[-1].weight)
    w = method.density_ratio({"observation": torch.randn(9, S), "action": torch.randn(9, A)})
    torch.testing.assert_close(w, torch.ones(9))


# ---- the ensemble ------------------------------------------------------------------------------------------------


def test_t33_equal_members_are_their_mixture_and_the_moments_are_the_mixtures():
    torch.manual_seed(0)
    member, other = SquashedGaussianActor(S, A, HIDDEN).double(), SquashedGaussianActor(S, A, HIDDEN).double()
    s, noise = torch.randn(6, S).double(), torch.randn(6, A).double()
    for found, expected in zip(Mixture([member, member])(s), member(s), strict=True):
        torch.testing.assert_close(found, expected)
    other.body.linears[-1].weight.data.mul_(80.0)
    both = Mixture([member, other])
    parts = [Normal(part.mean, part.log_std.exp()) for part in (member(s), other(s))]
    choice, draws = torch.randint(2, (400_000, 1, 1)), torch.stack([part.sample((400_000,)) for part in parts])
    sample = torch.where(choice == 0, draws[0], draws[1])
    torch.testing.assert_close(both(s).mean, sample.mean(0), atol=0.02, rtol=0.02)
    torch.testing.assert_close(both(s).log_std.exp(), sample.std(0), atol=0.02, rtol=0.02)
    action = both.perform(s.float().numpy(), noise.float().numpy())
    np.testing.assert_allclose(action, both.sampled(s, noise).detach(), atol=1e-5)


def test_t41_the_policy_climbs_the_mean_of_each_pairs_least():
    q = torch.tensor([[1.0], [5.0], [4.0], [2.0]])  # pairs (1, 5) and (4, 2)
    assert members_least(q, 2).mean(0).tolist() == [1.5]
    assert members_least(q, 1).tolist() == [[1.0]]


def test_every_loss_is_the_papers():
    method, batch = off2on(), draw(0, 3 * B)
    noise = noise_of(method, (3 * B, A))
    first = {name: value[:B] for name, value in batch.items()}
    critics = [plainly.plain_net(net.state_dict()) for net in method.critic.members]
    targets = [plainly.plain_net(net.state_dict()) for net in method.target_critic.members]
    actors = [plainly.PlainActor(actor.state_dict()) for actor in method.actor.members]
    log_alpha = method.log_alpha.detach().clone().requires_grad_(True)

    def act(s: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        moments = [actor.moments(s) for actor in actors]
        mean = sum(m for m, _ in moments) / 2
        std = (sum(m**2 + d**2 for m, d in moments) / 2 - mean**2).sqrt()
        u = mean + std * noise
        return torch.tanh(u), (Normal(mean, std).log_prob(u) - torch.log(1 - torch.tanh(u) ** 2)).sum(-1)

    a2, log_prob2 = act(first["s2"], noise["target"])
    critic_loss = torch.zeros(())
    for i in range(2):
        pair = torch.minimum(*(plainly.q_of(net, first["s2"], a2) for net in targets[2 * i : 2 * i + 2]))
        y = (first["r"] + 0.99 * (1 - first["d"]) * (pair - log_alpha.exp() * log_prob2)).detach()
        for net in critics[2 * i : 2 * i + 2]:
            critic_loss = critic_loss + (plainly.q_of(net, first["s"], first["a"]) - y).square().mean()
    a, log_prob = act(first["s"], noise["policy"])
    q = [plainly.q_of(net, first["s"], a) for net in critics]
    actor_loss = (log_alpha.exp().detach() * log_prob - (torch.minimum(*q[:2]) + torch.minimum(*q[2:])) / 2).mean()
    w = torch.nn.functional.softplus(method.ratio(torch.cat((batch["s"], batch["a"]), -1)).squeeze(-1))
    off, on = w[B : 2 * B], w[2 * B :]
    ratio_loss = -(2 / (off + 1)).log().mean() - (2 * on / (on + 1)).log().mean()

    found = method.step(transitions(batch), noise)
    gradients = {n: g for n, g in zip(*named(method, found.value), strict=True) if g is not None}
    expected: dict[str, Tensor] = {}
    for i, net in enumerate(critics):
        net.zero_grad()
        critic_loss.backward(retain_graph=True)
        expected |= {f"critic.members.{i}.{n}": g.clone() for n, g in plainly.net_gradients(net).items()}
    for actor in actors:
        actor.zero_grad()
    actor_loss.backward()
    for i, actor in enumerate(actors):
        expected |= {f"actor.members.{i}.{n}": g for n, g in actor.gradients().items()}
    temperature_loss = -log_alpha * (log_prob.detach().mean() - A)
    expected["log_alpha"] = torch.autograd.grad(temperature_loss, log_alpha)[0]
    ratio = {f"ratio.{n}": p for n, p in method.ratio.named_parameters()}
    expected |= dict(zip(ratio, torch.autograd.grad(ratio_loss, list(ratio.values())), strict=True))
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-5, atol=1e-9, msg=name)
    scale = w[:B].pow(0.2) / off.pow(0.2).mean()
    torch.testing.assert_close(found.metrics["priority"], scale.detach().clamp(1e-3, 1e3))


def named(method: Any, loss: Tensor) -> tuple[list[str], Any]:
    learning = {name: p for name, p in method.named_parameters() if p.requires_grad}
    return [*learning], torch.autograd.grad(loss, list(learning.values()), allow_unused=True)


def test_t40_a_members_target_is_its_own_and_the_policy_sees_all_critics():
    method, batch = off2on(), transitions(draw(0, 3 * B))
    noise = noise_of(method, (3 * B, A))
    before = method.step(batch, noise).metrics
    method.target_critic.members[2].linears[-1].bias.data.sub_(5.0)
    after = method.step(batch, noise).metrics
    moved = (before["target"] != after["target"]).any(-1)
    assert moved.tolist() == [False, False, True, True]
    assert torch.equal(before["actor_loss"], after["actor_loss"])
    method.critic.members[0].linears[-1].bias.data.sub_(100.0)
    assert (
        float(method.step(batch, noise).metrics["q_policy"].mean().detach())
        < float(after["q_policy"].detach().mean()) - 40.0
    )


def test_offline_each_agent_learns_as_if_it_were_alone_on_its_own_rows():
    options: dict[str, Any] = {"hidden": HIDDEN, "critic_hidden": HIDDEN, "samples": 2}
    method, batch = ready(Offline(members=2, **options)), draw(0, 2 * B)
    noise = noise_of(method, (2 * B, A))
    values = []
    for i, agent in enumerate(method.agents):
        assert isinstance(agent, CQL) and method.actor.members[i] is agent.actor
        rows = {name: value[i * B : (i + 1) * B] for name, value in batch.items()}
        own = {name[:-2]: value for name, value in noise.items() if name.endswith(f"_{i}")}
        values.append(agent.step(transitions(rows), own).value)
    torch.testing.assert_close(method.step(transitions(batch), noise).value, values[0] + values[1])
    assert len({id(p) for p in method.parameters()}) == sum(len([*agent.parameters()]) for agent in method.agents)


def test_critics_that_cannot_be_shared_out_are_refused():
    with pytest.raises(UserError, match="3 critics can't be shared out among 2 policies"):
        Off2On().build(TASK, Checkpoint(mixture, lambda: Critics(S, A, HIDDEN, False, 3), "offline"))


def test_online_the_targets_begin_as_the_critics_and_the_temperature_at_one():
    class Stored(Checkpoint):
        def load(self, net: Any, name: str) -> Any:
            raise AssertionError(f"{name} is taken")

    method = Off2On(ratio_hidden=HIDDEN)
    method.build(TASK, Stored(mixture, SOURCE.critic, "offline"))
    for target, critic in zip(method.target_critic.parameters(), method.critic.parameters(), strict=True):
        assert torch.equal(target, critic) and not target.requires_grad
    assert float(method.log_alpha.exp()) == pytest.approx(1.0)
    assert Online(method).method is method and method.carries_moments == ()
