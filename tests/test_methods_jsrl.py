"""JSRL: who acts when, and when the guide leaves earlier (T118–T122)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conftest import Fit
from every_method import TASK, A, Networks, S, built

from o2o_lightning.data.module import OfflineData
from o2o_lightning.data.online import OnlineData
from o2o_lightning.methods.iql import IQL
from o2o_lightning.methods.jsrl import JSRL
from o2o_lightning.phases.offline import Offline
from o2o_lightning.phases.online import Online

SIZES: dict[str, Any] = {"hidden": (8, 8), "critic_hidden": (8, 8), "critics": 2, "policy_every": 1}
STATE = np.zeros(S, np.float32)


def jsrl(**options: Any) -> Any:
    method = JSRL(**SIZES, **options)
    method.build(TASK, Networks("offline", built("iql")))
    return method


def stream() -> np.random.Generator:
    return np.random.default_rng(0)


def test_t118_the_guide_acts_in_the_first_h_steps_and_no_later():
    method = jsrl(horizon=3)
    guide, learner = (policy.explore(STATE, stream()) for policy in (method.guide, method.actor))
    assert not np.array_equal(guide, learner) and guide.shape == (A,)
    for step in range(6):
        method.before_step(step, None, stream())
        assert np.array_equal(method.act(STATE, stream()), guide if step < 3 else learner)
    method.guided.fill_(0)
    method.before_step(0, None, stream())
    assert np.array_equal(method.act(STATE, stream()), learner)


def test_t119_h_falls_from_its_start_to_nothing_in_equal_stages_and_never_rises():
    method, found = jsrl(horizon=40, stages=4, window=1), []
    for last in (10.0, 10.0, 12.0, 3.0, 12.0, 5.0, 12.0, 13.0, 20.0, -50.0):
        method.before_step(0, last, stream())
        found.append(int(method.guided))
    assert found == [40, 30, 20, 20, 10, 10, 0, 0, 0, 0]


def test_t119_a_stage_is_judged_by_its_own_episodes():
    method = jsrl(horizon=40, stages=4, window=2)
    found = []
    for last in (1.0, 3.0, 3.0, 1.0, 3.0):
        method.before_step(0, last, stream())
        found.append(int(method.guided))
    assert found == [40, 40, 30, 30, 30]  # means of 2 and of 3, and then one of 2 from two new episodes


@pytest.mark.parametrize(("last", "shorter"), [(-105.0, True), (-105.2, False), (-95.0, True)])
def test_t122_the_tolerance_is_of_the_returns_size_though_it_is_negative(last: float, shorter: bool):
    method = jsrl(horizon=40, stages=4, window=1, tolerance=0.05)
    method.before_step(0, -100.0, stream())
    method.before_step(0, last, stream())
    assert (int(method.guided) < 40) is shorter
    assert float(method.best) == max(-100.0, last)


def test_a_random_h_is_drawn_for_each_episode_and_reaches_both_ends():
    method, generator, found = jsrl(horizon=3, switch="random"), stream(), set()
    for _ in range(200):
        method.before_step(0, None, generator)
        found.add(int(method.guided))
        method.before_step(1, None, generator)
        assert int(method.guided) in found
    assert found == {0, 1, 2, 3}


def test_t120_and_t121_the_guide_learns_nothing_and_its_steps_are_stored_as_executed(fit: Fit, pendulum: str):
    offline = fit(
        lambda: Offline(IQL(hidden=(8, 8))), lambda: OfflineData(dataset=pendulum, batch_size=16, eval_episodes=1), 4
    )
    acted: list[Any] = []

    class Watched(JSRL):
        def act(self, observation: Any, generator: Any) -> Any:
            acted.append(super().act(observation, generator))
            return acted[-1]

    data = OnlineData(dataset=pendulum, env_steps=12, warmup_steps=2, batch_size=8, eval_episodes=1)
    run = fit(lambda: Online(Watched(**SIZES, horizon=200), str(offline.checkpoint)), data)
    before, after = run.start, run.end()
    guide = [name for name in after if ".guide." in name]
    assert guide and all(torch.equal(before[name], after[name]) for name in guide)
    assert all(parameter.grad is None for parameter in run.module.method.guide.parameters())
    assert not any(group["name"] == "guide" for group in run.trainer.optimizers[0].param_groups)
    assert np.array_equal(data.interaction.buffer["action"].numpy(), np.stack(acted))
    assert run.module.updates == 10
