"""A re-evaluation that begins at the dataset's returns, and whose targets follow fast for a while."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import HIDDEN, Fit, Run
from every_method import batches, built, noises

from o2o_lightning.data.module import OfflineData
from o2o_lightning.engine.whole import order_of
from o2o_lightning.errors import UserError
from o2o_lightning.methods.cql import CQL
from o2o_lightning.methods.method import Moment
from o2o_lightning.methods.o2 import sac, td3
from o2o_lightning.phases.offline import Offline
from o2o_lightning.phases.reevaluate import Reevaluate

MODULES = [td3, sac]


@pytest.mark.parametrize("module", MODULES)
def test_returns_come_first_then_fast_targets_then_those_of_the_paper(module: Any) -> None:
    method = built(f"o2{module.__name__.rpartition('.')[2]} reevaluate")
    method.return_updates, method.fast_updates = 2, 3
    found = [order_of(method, Moment(update)) for update in range(6)]
    assert found[:2] == [("return_step", "follow 1.0")] * 2
    assert found[2:5] == [("critic_step", "follow 0.05")] * 3
    assert found[5] == ("critic_step", "follow 0.005")
    method.return_updates = method.fast_updates = 0
    assert order_of(method, Moment(0)) == ("critic_step", "follow 0.005")


@pytest.mark.parametrize("module", MODULES)
def test_the_first_updates_fit_the_critics_to_the_returns(module: Any) -> None:
    method = built(f"o2{module.__name__.rpartition('.')[2]} reevaluate")
    batch = {name: value[0] for name, value in batches(method, 1).items()}
    batch["return_to_go"] = batch["reward"] + 7.0
    loss = method.return_step(batch, {name: value[0] for name, value in noises(method, 1).items()})
    q = method.critic(batch["observation"], batch["action"])
    expected = sum(float((member - batch["reward"] - 7.0).square().mean()) for member in q.detach())
    assert float(loss.value.detach()) == pytest.approx(expected, rel=1e-5)


def test_the_phase_brings_the_returns_of_whole_episodes(chain: dict[str, Run], fit: Fit, pendulum: str) -> None:
    returns: list[torch.Tensor] = []

    class Watched(td3.Reevaluate):
        def return_step(self, batch: Any, noise: Any) -> Any:
            returns.append(batch["return_to_go"])
            return super().return_step(batch, noise)

    fit(
        lambda: Reevaluate(Watched(hidden=HIDDEN, return_updates=2), str(chain["offline"].checkpoint)),
        lambda: OfflineData(dataset=pendulum, batch_size=64),
        4,
    )
    assert len(returns) == 2
    # Pendulum's rewards are below zero, of eight steps an episode: no return is less than the sum of eight of the worst
    assert all(bool((value < 0).all()) and bool((value > -8 * 16.2736044).all()) for value in returns)


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
