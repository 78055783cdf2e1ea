"""Methods that go online with what they have: CQL (T52), IQL and AWAC (T74–T80), WSRL (T97–T104)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from by_hand import A, draw, losses, noise_of, ready, transitions
from conftest import Fit
from every_method import HIDDEN, TASK, batches, built, noises
from torch import Tensor

from o2o_lightning.cli.command import split
from o2o_lightning.cli.compose import compose
from o2o_lightning.cli.main import main
from o2o_lightning.data.module import OfflineData
from o2o_lightning.data.online import OnlineData
from o2o_lightning.errors import UserError
from o2o_lightning.methods.awac import AWAC
from o2o_lightning.methods.cal_ql import CalQL
from o2o_lightning.methods.cql import CQL
from o2o_lightning.methods.iql import IQL
from o2o_lightning.methods.method import Method, Moment
from o2o_lightning.methods.wsrl import WSRL
from o2o_lightning.objectives.awr import awac_weight, expectile_loss
from o2o_lightning.phases.offline import Offline
from o2o_lightning.phases.online import Online

SIZES: dict[str, Any] = {"hidden": HIDDEN, "critic_hidden": HIDDEN}


def test_t52_cal_ql_without_a_bound_is_cql_to_the_bit():
    found = []
    for method in (CQL(**SIZES, samples=3), CalQL(**SIZES, samples=3), CalQL(**SIZES, samples=3, calibrate=False)):
        torch.manual_seed(0)
        method.build(TASK)
        batch = batches(method) | {
            "return_to_go": torch.full((16,), 1e6 if method.needs and not method.calibrate else -1e6)
        }
        loss = method.step(batch, noises(method)).value
        learning = [parameter for parameter in method.parameters() if parameter.requires_grad]
        found.append([loss, *torch.autograd.grad(loss, learning)])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize(
    "method", ["iql", "awac", "cql", "cal_ql", "pex", "rebrac", "spot", "aca", "wsrl", "off2on", "proto"]
)
def test_t78_a_transition_earns_the_same_reward_in_both_phases(method: str):
    for dataset in ("antmaze-umaze-v2", "hopper-medium-v2"):
        tokens = split([f"online={method}", f"dataset={dataset}"])
        maps = [compose(phase, tokens)["data"] for phase in ("offline", "online")]
        for key in ("reward_scale", "reward_shift"):
            assert maps[0][key] == maps[1][key], (dataset, key)


def test_t74_a_weight_is_one_between_equals_and_capped_at_a_hundred():
    weight = awac_weight(torch.tensor([0.0, 0.1 * math.log(100.0), 1.0]), 0.1, 100.0)
    torch.testing.assert_close(weight, torch.tensor([1.0, 100.0, 100.0]), rtol=1e-5, atol=0)


@pytest.mark.parametrize("rate", [0.0, 0.05])
def test_t76_the_order_matters_where_v_moves_before_the_policys_weights(rate: float):
    batch, found = transitions(draw(0, 24)), {}
    for order in ("together", "value_first"):
        method = ready(IQL(hidden=(8, 8), order=order))
        steps = losses(method, batch, noise_of(method, (24, A)), rate=rate)
        found[order] = next(loss.metrics["actor_loss"] for loss, _ in steps if "actor_loss" in loss.metrics)
    assert torch.allclose(*found.values(), rtol=1e-12) is (rate == 0.0)


def test_t76_one_after_the_other_each_loss_is_that_of_all_together():
    batch = transitions(draw(0, 24))
    method = ready(IQL(hidden=(8, 8)))
    together = method.step(batch, {}).metrics
    for step, name in (
        (method.value_step, "value_loss"),
        (method.policy_step, "actor_loss"),
        (method.critic_step, "critic_loss"),
    ):
        assert torch.equal(step(batch, {}).value, together[name])


@pytest.mark.parametrize(("schedule", "rate"), [("restart", 7.342e-6), ("constant", 3e-4), ("cosine", 2.926e-4)])
def test_t77_corls_cosine_climbs_again_from_nothing(schedule: Any, rate: float):
    method = IQL(hidden=(8,), actor_schedule=schedule, anneal_updates=1_000_000)
    method.build(TASK)
    rates = [method.rates(Moment(update)).get("actor", method.actor_lr) for update in (0, 100_000)]
    assert rates[0] == {"restart": 0.0, "constant": 3e-4, "cosine": 3e-4}[schedule]
    assert rates[1] == pytest.approx(rate, rel=1e-3)


def test_t79_the_expectile_is_the_mean_at_a_half_and_the_best_towards_one():
    values = torch.tensor([0.0, 1.0, 5.0])
    for expectile, expected in ((0.5, 2.0), (0.9999, 5.0)):
        grid = torch.linspace(0, 5, 5001)
        losses_of = torch.stack([expectile_loss(values - v, expectile) for v in grid])
        assert float(grid[losses_of.argmin()]) == pytest.approx(expected, abs=2e-3)


def test_t80_v_and_q_look_at_no_action_but_the_datas(monkeypatch: pytest.MonkeyPatch):
    method, batch = built("iql"), batches(built("iql"))
    asked: list[Tensor] = []
    for critic in (method.critic, method.target_critic):
        forward = critic.forward
        monkeypatch.setattr(
            type(critic), "__call__", lambda _, s, a, forward=forward: (asked.append(a), forward(s, a))[1]
        )
    method.value_step(batch, {})
    method.critic_step(batch, {})
    assert asked and all(action is batch["action"] for action in asked)


def offline(fit: Fit, dataset: str, method: Method, steps: int = 12) -> Any:
    return fit(lambda: Offline(method), lambda: OfflineData(dataset=dataset, batch_size=16, eval_episodes=1), steps)


@pytest.mark.parametrize("kind", [AWAC, IQL])
def test_t75_adams_moments_go_online_with_their_networks(kind: type[Method], fit: Fit, pendulum: str):
    before = offline(fit, pendulum, kind(hidden=HIDDEN))
    data = OnlineData(dataset=pendulum, env_steps=4, warmup_steps=0, mix="all", batch_size=16, eval_episodes=1)
    run = fit(lambda: Online(kind(hidden=HIDDEN), str(before.checkpoint)), data)
    assert run.start_moments and {float(moments["step"]) for moments in run.start_moments.values()} == {12.0}
    assert run.module.updates == 4  # the dataset is in the buffer: learning begins at once


def test_t97_t98_and_t99_wsrl_warms_up_frozen_and_goes_on_with_everything_but_the_data(fit: Fit, pendulum: str):
    before = offline(fit, pendulum, CalQL(**SIZES, samples=2, critics=4, subset=2, layer_norm=True))
    seen: list[tuple[int, dict[str, Tensor]]] = []

    class Watched(WSRL):
        def act(self, observation: Any, generator: Any) -> Any:
            seen.append((online.updates, {name: value.clone() for name, value in self.state_dict().items()}))
            return super().act(observation, generator)

    online = Online(Watched(**SIZES), str(before.checkpoint))
    data = OnlineData(dataset=pendulum, env_steps=14, warmup_steps=10, mix="none", utd=4, batch_size=8, eval_episodes=1)
    run = fit(online, data)
    assert [updates for updates, _ in seen] == [0] * 11 + [4, 8, 12]  # the policy acts from the first step on
    for _, state in seen[:11]:
        assert all(torch.equal(value, seen[0][1][name]) for name, value in state.items())
    assert len(data.buffer) == 14
    assert {float(moments["step"]) for moments in run.start_moments.values()} == {12.0}
    assert {name.split(".")[1] for name in run.start_moments} == {"actor", "critic", "log_alpha"}
    offline_end = before.end()
    for name, value in run.start.items():
        if name.split(".")[1] != "offline_actor":
            assert torch.equal(value, offline_end[name]), name


def test_t103_the_warm_up_is_counted_from_the_phases_own_start(fit: Fit, pendulum: str, tmp_path: Path):
    before = offline(fit, pendulum, CalQL(**SIZES, samples=2, critics=4, subset=2, layer_norm=True))
    checkpoint = torch.load(before.checkpoint, weights_only=True)
    checkpoint["o2o_progress"] |= {"updates": 1_000_000, "env_steps": 1_000_000}
    checkpoint["global_step"] = 1_000_000
    torch.save(checkpoint, tmp_path / "long.ckpt")
    seen: list[int] = []

    class Watched(WSRL):
        def act(self, observation: Any, generator: Any) -> Any:
            seen.append(online.updates)
            return super().act(observation, generator)

    online = Online(Watched(**SIZES), str(tmp_path / "long.ckpt"))
    fit(online, OnlineData(dataset=pendulum, env_steps=13, warmup_steps=10, mix="none", batch_size=8, eval_episodes=1))
    assert seen == [0] * 11 + [1, 2] and online.env_steps == 13


def test_t100_and_t102_four_critic_steps_come_for_one_of_the_policy_which_climbs_the_least_critic():
    method = WSRL(**SIZES, critics=4)
    method.build(TASK)
    names = [getattr(item, "__name__", "follow") for i in range(4) for item in method.update(Moment(i))]
    assert names == ["critic_step", "follow"] * 4 + ["policy_step"]
    q = torch.randn(4, 16, requires_grad=True)
    (gradient,) = torch.autograd.grad(method.climbed(q).sum(), q)
    assert torch.equal(gradient, (q == q.min(0).values).float())


def test_t101_ten_critics_of_which_two_bound_the_target_learn_offline():
    method = CalQL(**SIZES, samples=2, critics=4, subset=2, calibrate=False)
    method.build(TASK)
    batch, noise = batches(method), noises(method)
    noise["subset"] = torch.tensor([-0.9, 0.9])  # the first and the last
    following = method.actor.distribution(batch["next", "observation"])
    with torch.no_grad():
        action = following.sample(noise["target"])[0][0]
        q = method.target_critic(batch["next", "observation"], action)
        expected = batch["reward"] + 0.99 * (1 - batch["next", "terminated"]) * torch.minimum(q[0], q[3])
        torch.testing.assert_close(method.bootstrap(batch, following, noise), expected)


def test_none_of_the_critics_cannot_bound_a_target():
    with pytest.raises(UserError, match=r"--model\.subset 0: it must be at least 1"):
        CalQL(**SIZES, subset=0)


def test_t104_without_a_checkpoint_wsrl_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Any):
    line = ["fit", "--phase", "online", "online=wsrl", "--data.dataset", "embedded:hopper-medium"]
    assert main([*line, "--run_dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "wsrl goes on from a policy and its critics" in error
    assert not (tmp_path / "run").exists()
