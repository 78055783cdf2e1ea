"""A re-evaluation that begins where the dataset's rewards put it, and whose targets follow fast for a while."""

from typing import Any

import gymnasium as gym
import h5py
import numpy as np
import pytest
import torch
from conftest import HIDDEN, Fit, Run
from every_method import SOURCES, TASK, Networks, batches, built
from hypothesis import given
from hypothesis import strategies as st

from o2o_lightning.data.module import OfflineData
from o2o_lightning.engine.whole import order_of
from o2o_lightning.errors import UserError
from o2o_lightning.methods.cql import CQL
from o2o_lightning.methods.method import Moment, Task
from o2o_lightning.methods.o2 import sac, td3
from o2o_lightning.objectives.bellman import steady_value
from o2o_lightning.phases.offline import Offline
from o2o_lightning.phases.reevaluate import Reevaluate

MODULES = [td3, sac]


def begun(module: Any, task: Task, **options: Any) -> Any:
    """A re-evaluation's method whose networks are made, always of the same random numbers."""
    torch.manual_seed(0)
    before = SOURCES[module.Reevaluate.name]()
    before.build(TASK)
    method = module.Reevaluate(hidden=HIDDEN, **options)
    method.build(task, Networks("offline", before))
    return method


@pytest.mark.parametrize("module", MODULES)
def test_fast_targets_come_first_then_those_of_the_paper(module: Any) -> None:
    method = built(f"{module.Reevaluate.name} reevaluate")
    method.fast_updates = 3
    found = [order_of(method, Moment(update)) for update in range(4)]
    assert found == [("critic_step", "follow 0.05")] * 3 + [("critic_step", "follow 0.005")]
    method.fast_updates = 0
    assert order_of(method, Moment(0)) == ("critic_step", "follow 0.005")


@given(
    rewards=st.lists(st.floats(-20, 20), min_size=1, max_size=30),
    ends=st.lists(st.booleans(), min_size=30, max_size=30),
    discount=st.floats(0.0, 0.999),
)
def test_the_steady_value_solves_the_bellman_equation_on_average(
    rewards: list[float], ends: list[bool], discount: float
) -> None:
    terminated = np.array(ends[: len(rewards)], float)
    value = steady_value(float(np.mean(rewards)), float(terminated.mean()), discount)
    targets = np.array(rewards) + discount * (1.0 - terminated) * value
    assert float(np.mean(targets)) == pytest.approx(value, abs=1e-6 * (1 + abs(value)))


@pytest.mark.parametrize("module", MODULES)
def test_critics_that_begin_at_the_data_are_the_same_but_for_their_level(module: Any) -> None:
    zero, data = begun(module, TASK), begun(module, TASK._replace(mean_reward=3.0, ending=0.1), initial_value="data")
    batch = {name: value[0] for name, value in batches(zero, 1).items()}
    for name in ("critic", "target_critic"):
        before, after = (getattr(m, name)(batch["observation"], batch["action"]) for m in (zero, data))
        torch.testing.assert_close(after, before + 3.0 / (1 - 0.99 * 0.9), rtol=1e-5, atol=1e-4)


def test_the_phase_tells_the_means_of_the_rewards_that_are_learned(
    chain: dict[str, Run], fit: Fit, pendulum: str
) -> None:
    told: list[Task] = []

    class Told(td3.Reevaluate):
        def build(self, task: Task, source: Any = None) -> None:
            told.append(task)
            super().build(task, source)

    data = lambda: OfflineData(dataset=pendulum, batch_size=64, reward_scale=0.5, reward_shift=1.0)  # noqa: E731

    def make(value: Any) -> Reevaluate:
        method = Told(hidden=HIDDEN, initial_value=value)
        return Reevaluate(method, str(chain["offline"].checkpoint), earned=False)

    run = fit(lambda: make("data"), data, 1)
    with h5py.File(pendulum) as file:
        rewards, ends = np.asarray(file["rewards"]), np.asarray(file["timeouts"]).astype(bool)
    learned = rewards[~ends]  # the successor of an episode's last row is nobody's
    assert told[0].mean_reward == pytest.approx(0.5 * learned.mean() + 1.0, rel=1e-5)
    assert told[0].ending == 0.0
    fit(lambda: make("zero"), data, 1)
    assert told[1].mean_reward == 0.0  # nobody reads all rewards of a large dataset for nothing
    value = run.module.method.critic(*(run.module.sampled(512)[name] for name in ("observation", "action"))).mean()
    assert float(value.detach()) == pytest.approx(told[0].mean_reward / (1 - 0.99), rel=0.1)


def test_rewards_that_go_on_for_ever_have_no_value_without_a_discount() -> None:
    with pytest.raises(UserError, match=r"initial_value data: with --model\.discount 1"):
        begun(td3, TASK._replace(mean_reward=1.0), initial_value="data", discount=1.0)
    begun(td3, TASK, initial_value="data", discount=1.0)  # as a checkpoint is read, without a dataset


@pytest.mark.parametrize("module", MODULES)
def test_the_critic_is_held_against_what_the_policy_earns(
    module: Any, chain: dict[str, Run], fit: Fit, pendulum: str
) -> None:
    data = lambda: OfflineData(dataset=pendulum, batch_size=16, eval_episodes=2, eval_seed=5)  # noqa: E731
    start = chain["offline"].checkpoint
    if module is sac:
        start = fit(lambda: Offline(CQL(hidden=HIDDEN, critic_hidden=HIDDEN)), data, 4).checkpoint
    run = fit(lambda: Reevaluate(module.Reevaluate(hidden=HIDDEN), str(start)), data, 4)
    method, env = run.module.method, gym.make("Pendulum-v1")
    values, truths = [], []
    for seed in (5, 6):
        state, over, rewards = env.reset(seed=seed)[0], False, []
        while not over:
            seen = run.module.normalizer(torch.tensor(state).unsqueeze(0))
            with torch.no_grad():
                action = method.offline_actor.mode(seen)
                values.append(float(method.critic(seen, action).min()))
            state, reward, _, over, _ = env.step(2.0 * action[0].numpy())
            rewards.append(float(reward))
        assert len(rewards) == 200  # cut by the time limit: it goes on as it went so far
        goes_on = np.mean(rewards) / (1 - 0.99)
        truths += [
            sum(0.99**k * r for k, r in enumerate(rewards[i:])) + 0.99 ** (200 - i) * goes_on for i in range(200)
        ]
    found = run.module.facts()["earned"]
    assert found["truth"] == pytest.approx(np.mean(truths), rel=1e-4)
    assert found["value"] == pytest.approx(np.mean(values), abs=1e-4)
    assert found["correlation"] == pytest.approx(np.corrcoef(values, truths)[0, 1], abs=1e-3)
    assert found["error"] == pytest.approx(abs(np.mean(values) / np.mean(truths) - 1), rel=1e-3)
    assert f"reevaluate: the critic says {found['value']:.4g} of what π_off does, which" in run.module.conclusion()
    assert run.module.eval_env_steps == 400


@pytest.mark.parametrize("without", [{"earned": False}, {"episodes": 0}])
def test_without_it_no_episode_is_played(
    without: dict[str, Any], chain: dict[str, Run], fit: Fit, pendulum: str
) -> None:
    make = lambda: Reevaluate(  # noqa: E731
        td3.Reevaluate(hidden=HIDDEN), str(chain["offline"].checkpoint), earned=without.get("earned", True)
    )
    run = fit(make, lambda: OfflineData(dataset=pendulum, batch_size=16, eval_episodes=without.get("episodes", 1)), 4)
    assert run.module.eval_env_steps == 0 and "earned" not in run.module.facts()


def test_a_rate_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="fast_polyak 0"):
        td3.Reevaluate(fast_polyak=0.0)
