"""Pins to another policy on a schedule: PROTO (T67–T73), SPOT (T81–T86), ReBRAC (T87–T90)."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from by_hand import A, Checkpoint, S, draw, losses, noise_of, ready, transitions
from conftest import Fit
from every_method import TASK, Networks
from torch import Tensor
from torch.distributions import Normal

from o2o_lightning.data.module import OfflineData
from o2o_lightning.data.online import OnlineData
from o2o_lightning.errors import UserError
from o2o_lightning.methods import rebrac
from o2o_lightning.methods.cql import CQL
from o2o_lightning.methods.method import Moment
from o2o_lightning.methods.proto import PROTO, PROTOTD3
from o2o_lightning.methods.rlpd import RLPD
from o2o_lightning.methods.spot import SPOT
from o2o_lightning.methods.td3 import TD3
from o2o_lightning.nn.actor import DeterministicActor
from o2o_lightning.nn.critics import Critics
from o2o_lightning.nn.squashed_gaussian import SquashedGaussianActor
from o2o_lightning.phases.offline import Offline
from o2o_lightning.phases.online import Online

H = (8, 8)
GAUSSIAN = Checkpoint(lambda: SquashedGaussianActor(S, A, H), lambda: Critics(S, A, H, False), "offline")
DETERMINISTIC = Checkpoint(lambda: DeterministicActor(S, A, H), lambda: Critics(S, A, H, False), "offline")


def gradients(method: Any, loss: Tensor, net: str = "actor") -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(getattr(method, net).parameters()), allow_unused=True))


def same(one: Any, other: Any) -> bool:
    return all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(one, other, strict=True))


# ---- PROTO ---------------------------------------------------------------------------------------------------------


def proto(**options: Any) -> Any:
    return ready(PROTO(**options), source=GAUSSIAN)


def test_the_ratio_is_that_of_the_two_squashed_densities():
    method, batch = proto(), draw(0, 24)
    noise = noise_of(method, (24, A))
    policy = method.actor.distribution(batch["s"])
    action, log_prob = policy.sample(noise["policy"])
    before = method.anchor.distribution(batch["s"])
    u = torch.atanh(action)
    density = (Normal(before.mean, before.log_std.exp()).log_prob(u) - torch.log(1 - action.square())).sum(-1)
    found = method.log_ratio(batch["s"], policy, noise["policy"])
    torch.testing.assert_close(found, log_prob - density, rtol=1e-6, atol=1e-6)
    loss = method.policy_step(transitions(batch), noise).metrics["actor_loss"]
    q = method.critic(batch["s"], action).mean(0)
    expected = (method.log_alpha.exp() * log_prob + 2.0 * (log_prob - density) - q).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)


def test_t67_a_policy_that_has_not_moved_pays_nothing():
    method, batch = proto(), draw(0, 24)
    method.anchor.load_state_dict(method.actor.state_dict())
    policy = method.actor.distribution(batch["s"])
    assert not method.log_ratio(batch["s"], policy, noise_of(method, (24, A))["policy"]).any()


def test_t67_there_the_ratios_own_gradient_is_of_mean_zero():
    method = proto()
    method.anchor.load_state_dict(method.actor.state_dict())
    s, sizes = draw(0, 1)["s"].expand(40_000, S), []
    policy = method.actor.distribution(s)
    noise = torch.randn(40_000, A, generator=torch.Generator().manual_seed(0)).double()
    ratio = method.log_ratio(s, policy, noise)
    for rows in (16, 40_000):
        found = torch.autograd.grad(ratio[:rows].mean(), list(method.actor.parameters()), retain_graph=True)
        sizes.append(float(torch.cat([part.flatten() for part in found]).norm()))
    assert 0 < sizes[1] < 0.1 * sizes[0]  # the root of 16 / 40 000 is 0.02


@pytest.mark.parametrize(("kind", "source"), [(PROTO, GAUSSIAN), (PROTOTD3, DETERMINISTIC)])
def test_t68_kappa_falls_to_a_tenth_and_at_last_to_nothing(kind: Any, source: Any):
    method = kind(strength=2.0, decay_env_steps=1000)
    method.build(TASK, source)
    found = [method.schedules(Moment(0, steps))["strength_now"] for steps in (0, 500, 1000, 1112, 2000)]
    assert found == pytest.approx([2.0, 1.1, 0.2, 0.0, 0.0])


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_t69_the_anchor_is_the_policy_or_stands_still(rate: float):
    method = proto(anchor_rate=rate)
    *_, follow = method.update(Moment(0))
    assert (follow.target, follow.source, follow.rate) == (method.anchor, method.actor, rate)
    batch, before = transitions(draw(0, 24)), copy.deepcopy(method.anchor.state_dict())
    noise = noise_of(method, (24, A))
    for _ in losses(method, batch, noise, Moment(0)):
        pass
    policy = method.actor.distribution(batch["observation"])
    assert bool(method.log_ratio(batch["observation"], policy, noise["policy"]).any()) is (rate == 0.0)
    assert same(before.values(), method.anchor.state_dict().values()) is (rate == 0.0)


def test_t71_the_target_pays_gamma_kappa_for_each_nat_and_with_its_switch_off_nothing():
    batch = draw(0, 24)
    for backup, price in ((True, 0.99 * 2.0), (False, 0.0)):
        method = proto(entropy_backup=backup)
        noise, plain = noise_of(method, (24, A)), method.log_ratio
        low = method.critic_step(transitions(batch), noise).metrics["target"]
        method.log_ratio = lambda *of, plain=plain: plain(*of) + 0.5
        high = method.critic_step(transitions(batch), noise).metrics["target"]
        torch.testing.assert_close(low - high, price * 0.5 * (1 - batch["d"]))


def test_t72_the_second_critic_is_climbed_where_it_is_asked_for():
    batch = draw(0, 24)
    for name, moves in (("first", 0), ("second", 1)):
        method = ready(PROTOTD3(policy_critic=name), source=DETERMINISTIC)
        noise = noise_of(method, (24, A))
        before = gradients(method, method.policy_step(transitions(batch), noise).value)
        for member in range(2):
            changed = copy.deepcopy(method)
            for parameter in changed.critic.members[member].parameters():
                parameter.data.mul_(1.5)
            after = gradients(changed, changed.policy_step(transitions(batch), noise).value)
            assert same(before, after) is (member != moves)


@pytest.mark.parametrize("target_action", ["anchor", "smoothed"])
def test_td3s_variant_pays_for_the_distance_from_its_anchor(target_action: Any):
    method, batch = ready(PROTOTD3(target_action=target_action), source=DETERMINISTIC), draw(0, 24)
    noise = noise_of(method, (24, A))
    smooth = (method.actor(batch["s2"]) + (0.2 * noise["target"]).clamp(-0.5, 0.5)).clamp(-1, 1)
    anchor = method.target_actor(batch["s2"])
    valued = {"anchor": anchor, "smoothed": smooth}[target_action]
    value = method.target_critic(batch["s2"], valued).min(0).values - 2.0 * (smooth - anchor).square().mean()
    found = method.critic_step(transitions(batch), noise).metrics["target"]
    torch.testing.assert_close(found, (batch["r"] + 0.99 * (1 - batch["d"]) * value).detach())
    action = method.actor(batch["s"])
    q = method.critic(batch["s"], action)[0]
    distance = (action - method.target_actor(batch["s"])).square().mean()
    expected = -2.5 * q.mean() / q.detach().abs().mean() + 2.0 * distance
    torch.testing.assert_close(method.policy_step(transitions(batch), noise).value, expected)


@pytest.mark.parametrize("mix", ["half", "none"])
def test_t70_the_buffer_begins_with_rows_of_the_dataset(mix: Any, pendulum: str, fit: Fit):
    data = OnlineData(dataset=pendulum, env_steps=3, warmup_steps=0, mix=mix, seeds=40, batch_size=8, eval_episodes=1)
    run = fit(lambda: Online(RLPD(hidden=H, critic_hidden=H, critics=2, policy_every=1)), data)
    ring = data.interaction.buffer
    assert len(ring) == 43 and run.module.updates == 3
    known = {tuple(row) for row in data.store["observation"].tolist()}
    assert all(tuple(row) in known for row in ring["observation"][:40].tolist())


def test_t73_an_anchor_lags_by_the_reciprocal_of_its_rate():
    policy, anchor = torch.zeros(1), torch.zeros(1)
    for _ in range(4000):
        policy += 1.0
        anchor.lerp_(policy, 0.005)
    assert float(policy - anchor) == pytest.approx(200, abs=2)


# ---- SPOT ----------------------------------------------------------------------------------------------------------


def spot(**options: Any) -> Any:
    return ready(SPOT(hidden=H, vae_hidden=H, **options))


def test_t81_lambda_falls_to_a_fifth_and_stays_there():
    method = spot(pin=0.25)
    found = [method.schedules(Moment(0, steps))["pin_now"] for steps in (0, 400_000, 800_000, 5_000_000)]
    assert found == pytest.approx([0.25, 0.15, 0.05, 0.05], rel=1e-12)


def test_the_pin_is_the_negative_evidence_bound_by_one_latent():
    method, batch = spot(), draw(0, 24)
    vae, noise = method.vae, torch.randn(24, 2 * A).double()
    mean, log_std = vae.encoder(torch.cat((batch["s"], batch["a"]), -1)).chunk(2, -1)
    std = log_std.clamp(-4, 15).exp()
    decoded = torch.tanh(vae.decoder(torch.cat((batch["s"], mean + std * noise), -1)))
    kl = torch.distributions.kl_divergence(Normal(mean, std), Normal(torch.zeros_like(mean), torch.ones_like(std)))
    expected = (decoded - batch["a"]).square().mean(-1) + 0.5 * kl.mean(-1)
    torch.testing.assert_close(vae(batch["s"], batch["a"], noise), expected)


def test_t82_a_trained_auto_encoder_prefers_the_datas_actions():
    torch.manual_seed(0)
    method = SPOT(hidden=H, vae_hidden=(64, 64), vae_updates=50)
    method.build(TASK)
    s = torch.randn(512, S)
    a = 0.6 * torch.tanh(s[:, :A])
    adam = torch.optim.Adam(method.vae.parameters(), 3e-3)
    for _ in range(300):
        adam.zero_grad()
        method.vae(s, a, torch.randn(512, 2 * A)).mean().backward()
        adam.step()
    noise = torch.randn(512, 2 * A)
    cost = [float(method.vae(s, action, noise).mean()) for action in (a, a + 0.3, torch.rand(512, A) * 2 - 1)]
    assert cost[0] < cost[1] < cost[2]


def test_t83_a_policys_step_reaches_no_weight_of_the_auto_encoder():
    method = spot(vae_updates=2)
    loss = method.policy_step(transitions(draw(0, 24)), noise_of(method, (24, A))).value
    assert all(gradient is None for gradient in gradients(method, loss, "vae"))
    orders = [[getattr(item, "__name__", "follow") for item in method.update(Moment(i))] for i in range(4)]
    assert orders[:3] == [["vae_step"], ["vae_step"], ["critic_step"]] and "policy_step" in orders[3]
    after = SPOT(hidden=H, vae_hidden=H, vae_updates=0)
    after.build(TASK, Networks("offline", method.float()))
    assert "vae" not in after.learners() and same(after.vae.parameters(), method.vae.parameters())
    assert not any(parameter.requires_grad for parameter in after.vae.parameters())


def test_t84_without_a_pin_the_policy_climbs_a_normalised_q():
    method, batch = spot(pin=0.0), draw(0, 24)
    method.pin_now.fill_(0.0)
    loss = method.policy_step(transitions(batch), noise_of(method, (24, A))).value
    q = method.critic.first(batch["s"], method.actor(batch["s"]))
    torch.testing.assert_close(loss, -q.mean() / q.detach().abs().mean())


def test_online_without_the_auto_encoder_of_the_offline_phase_is_refused():
    with pytest.raises(UserError, match="needs the auto-encoder of its offline phase"):
        spot(vae_updates=0)


def test_an_auto_encoder_that_leaves_the_policy_no_update_is_refused():
    with pytest.raises(UserError, match=r"--model.vae_updates 100: of 100 updates none is left for the policy"):
        SPOT(hidden=H, vae_hidden=H, vae_updates=100).build(TASK)


def test_t85_spots_moments_are_kept_and_protos_first_step_is_its_rate(pendulum: str, fit: Fit):
    batch = {"dataset": pendulum, "batch_size": 8, "eval_episodes": 1}
    online = lambda: OnlineData(**batch, env_steps=3, warmup_steps=2)  # noqa: E731
    source = lambda method: fit(lambda: Offline(method), lambda: OfflineData(**batch), 12)  # noqa: E731
    before = source(SPOT(hidden=H, vae_hidden=H, vae_updates=4))
    kept = fit(lambda: Online(SPOT(hidden=H, vae_hidden=H, vae_updates=0), str(before.checkpoint)), online)
    assert {float(moments["step"]) for moments in kept.start_moments.values()} == {8.0, 4.0}  # of critics, of the actor
    assert all(bool(moments["exp_avg"].any()) for moments in kept.start_moments.values())
    before = source(CQL(hidden=H, critic_hidden=H, samples=2))
    new = fit(lambda: Online(PROTO(hidden=H, critic_hidden=H), str(before.checkpoint)), online)
    assert not new.start_moments and new.module.updates == 1
    name = "method.critic.members.0.linears.1.bias"
    moved = (new.end()[name] - new.start[name]).abs()
    torch.testing.assert_close(moved[moved > 1e-5], torch.full_like(moved[moved > 1e-5], 3e-4), rtol=1e-2, atol=0)


def test_t86_the_discount_may_be_another_online():
    batch, targets = draw(0, 24), []
    for discount in (0.99, 0.995):
        method = spot(discount=discount)
        targets.append(method.critic_step(transitions(batch), noise_of(method, (24, A))).metrics["target"] - batch["r"])
    torch.testing.assert_close(targets[1], targets[0] * (0.995 / 0.99), rtol=1e-5, atol=1e-7)


# ---- ReBRAC --------------------------------------------------------------------------------------------------------


def test_t87_beta_falls_to_its_floor_and_the_critics_penalty_is_gone_online():
    method = rebrac.ReBRAC(hidden=H, policy_penalty=0.4, penalty_env_steps=1000)
    method.build(TASK)
    found = [method.schedules(Moment(0, steps))["penalty_now"] for steps in (0, 250, 500, 1000)]
    assert found == pytest.approx([0.4, 0.3, 0.2, 0.2])
    assert not hasattr(method, "critic_penalty")


def test_t88_the_penalty_is_the_sum_over_dimensions_of_the_distance_to_the_datas_next_action():
    method, plain, batch = ready(rebrac.Offline(hidden=H)), ready(TD3(hidden=H, layer_norm=True)), draw(0, 24)
    plain.load_state_dict(method.state_dict(), strict=False)
    noise = noise_of(method, (24, A))
    smooth = (method.target_actor(batch["s2"]) + (0.2 * noise["target"]).clamp(-0.5, 0.5)).clamp(-1, 1)
    targets = []
    for distance in (0.0, 0.1):
        rows = transitions(batch, next_action=smooth + distance)
        rows["next", "truncated"] = torch.zeros(24)
        targets.append(method.critic_step(rows, noise).metrics["target"])
    torch.testing.assert_close(targets[0], plain.critic_step(transitions(batch), noise).metrics["target"])
    torch.testing.assert_close(targets[0] - targets[1], 0.99 * (1 - batch["d"]) * 0.01 * A * 0.01)


def test_t89_the_scale_of_q_does_not_reach_the_policy():
    method, batch = ready(rebrac.ReBRAC(hidden=H)), draw(0, 24)
    noise, found = noise_of(method, (24, A)), []
    for factor in (1.0, 7.0):
        scaled = copy.deepcopy(method)
        for member in scaled.critic.members:
            for parameter in member.linears[-1].parameters():
                parameter.data.mul_(factor)
        found.append(gradients(scaled, scaled.policy_step(transitions(batch), noise).value))
    assert same(*found)


def test_t90_every_row_knows_the_whole_next_action_of_its_episode(pendulum: str, fit: Fit):
    seen: list[Any] = []

    class Keeping(Offline):
        def learn(self, batch: Any, *where: int) -> Any:
            seen.append(batch.clone())
            return super().learn(batch, *where)

    data = OfflineData(dataset=pendulum, batch_size=64, eval_episodes=1)
    fit(lambda: Keeping(rebrac.Offline(hidden=H)), data, 4)
    assert data.store is not None
    following = dict(zip(map(tuple, data.store["observation"].tolist()), data.store["action"], strict=True))
    for batch in seen:
        for row in range(64):
            if not batch["next", "truncated"][row] and not batch["next", "terminated"][row]:
                raw = data.normalizer.std + data.normalizer.eps
                state = batch["next", "observation"][row] * raw + data.normalizer.mean
                nearest = min(following, key=lambda key: float((torch.tensor(key) - state).abs().sum()))
                assert torch.equal(batch["next_action"][row], following[nearest])
