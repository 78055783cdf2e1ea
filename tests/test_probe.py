"""A threshold of the policy's own: how far its critic can push it before its episodes say that it is worse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import HIDDEN, Fit, Run
from test_phases_frozen import part, same

from o2o_lightning.callbacks.reference import ThresholdSchedule
from o2o_lightning.data.module import OfflineData
from o2o_lightning.data.online import OnlineData
from o2o_lightning.envs.episodes import Evaluation
from o2o_lightning.errors import UserError
from o2o_lightning.methods.cql import CQL
from o2o_lightning.methods.o2 import sac, td3
from o2o_lightning.methods.o2.constraint import Threshold
from o2o_lightning.methods.o2.reference import Reference
from o2o_lightning.objectives.constraint import squared_divergence
from o2o_lightning.phases.offline import Offline
from o2o_lightning.phases.online import Online
from o2o_lightning.phases.probe import safe_divergence
from o2o_lightning.phases.reevaluate import Reevaluate

END = 64e-6
EPISODES = 4


class Judged(Online):
    """Judgements by script: π_off's returns are 0 to 3, those of a policy beyond the limit lower by one."""

    limit: float
    asked: list[float]

    def judge(self, policy: Any, episodes: int, round: int = 0) -> Evaluation:
        observation = self.sampled()["observation"]
        with torch.no_grad():
            far = squared_divergence(policy(observation), self.method.offline_actor(observation)).mean()
        self.asked.append(float(far))
        lower = 1.0 if far >= self.limit else 0.0
        noise = [0.1, 0.0, -0.1, 0.05]
        return Evaluation([i - lower + noise[i] * lower for i in range(episodes)], [1] * episodes, None)


def probed(
    fit: Fit, chain: dict[str, Run], pendulum: str, limit: float, measured: bool = True, scale: float = 1.0
) -> Run:
    def phase() -> Judged:
        rule = Threshold(start=END / 4, end=END, env_steps=10, measured=measured, episodes=EPISODES)
        method = td3.Online(threshold=rule, reference=Reference(threshold_scale=scale), actor_lr=1e-3)
        made = Judged(method, str(chain["align"].checkpoint))
        made.limit, made.asked = limit, []
        return made

    data = lambda: OnlineData(  # noqa: E731
        dataset=pendulum, env_steps=5, warmup_steps=0, eval_every=5, eval_episodes=1, batch_size=16
    )
    return fit(phase, data)


def schedule(run: Run) -> ThresholdSchedule:
    (found,) = (callback for callback in run.trainer.callbacks if isinstance(callback, ThresholdSchedule))  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize("limit", [END / 24, END / 6, END / 3])
def test_the_end_is_the_last_level_that_the_policy_bore(
    fit: Fit, chain: dict[str, Run], pendulum: str, limit: float
) -> None:
    run = probed(fit, chain, pendulum, limit)
    off, *pushed = run.module.asked
    assert off == 0.0
    assert pushed == sorted(pushed)
    assert pushed[-1] >= limit > max([0.0, *pushed[:-1]])
    bore = [END / 2**k for k in range(7) if END / 2**k <= max([0.0, *pushed[:-1]])]
    found = schedule(run)
    assert found.end == pytest.approx(max(bore, default=END / 128))
    assert found.start == pytest.approx(found.end / 4)
    assert float(run.module.method.threshold_now) == pytest.approx(found.start + (found.end - found.start) / 2)


def test_a_policy_that_bears_all_keeps_the_tables_threshold(fit: Fit, chain: dict[str, Run], pendulum: str) -> None:
    run = probed(fit, chain, pendulum, limit=1.0)
    assert schedule(run).end == END
    assert run.module.asked[-1] >= END


def test_the_references_factor_lowers_where_the_search_ends(fit: Fit, chain: dict[str, Run], pendulum: str) -> None:
    run = probed(fit, chain, pendulum, limit=1.0, scale=0.25)
    assert schedule(run).end == END / 4


def test_one_that_bears_nothing_has_half_of_the_least_level(fit: Fit, chain: dict[str, Run], pendulum: str) -> None:
    run = probed(fit, chain, pendulum, limit=1e-12)
    assert schedule(run).end == pytest.approx(END / 128)
    assert len(run.module.asked) == 2


def test_nothing_of_the_run_is_pushed(fit: Fit, chain: dict[str, Run], pendulum: str) -> None:
    run, plain = probed(fit, chain, pendulum, 1.0), probed(fit, chain, pendulum, 1.0, measured=False)
    assert plain.module.asked == []
    assert same(run.end(), plain.end())  # the threshold alone may differ, and here the table's is borne


def test_sac_is_pushed_by_its_own_loss(fit: Fit, pendulum: str) -> None:
    data = lambda: OfflineData(dataset=pendulum, batch_size=16, eval_episodes=1)  # noqa: E731
    policy = fit(lambda: Offline(CQL(hidden=HIDDEN, critic_hidden=HIDDEN)), data, 4)
    critic = fit(lambda: Reevaluate(sac.Reevaluate(hidden=HIDDEN), str(policy.checkpoint)), data, 4)
    method = sac.Online(threshold=Threshold(end=0.01, measured=True, episodes=2), actor_lr=1e-3)
    steps = lambda: OnlineData(  # noqa: E731
        dataset=pendulum,
        env_steps=1,
        warmup_steps=0,
        eval_episodes=1,
        batch_size=16,
        env_kwargs={"max_episode_steps": 4},
    )
    run = fit(lambda: Online(method, str(critic.checkpoint)), steps)
    assert 0.01 / 128 <= schedule(run).end <= 0.01
    rows = run.metrics().decode()
    assert "probe_divergence" in rows
    assert "threshold_end" in rows


def test_a_probe_wants_episodes() -> None:
    with pytest.raises(UserError, match=r"--model\.threshold\.episodes"):
        Threshold(measured=True, episodes=1)


def test_probed_policies_start_where_the_first_pushed(fit: Fit, chain: dict[str, Run], pendulum: str) -> None:
    """π_off is pushed, and not π_on, which goes online."""
    run = probed(fit, chain, pendulum, 1.0)
    assert not same(part(run.start, "method.actor"), part(run.start, "method.offline_actor"))
    assert run.module.asked[0] == 0.0
    assert safe_divergence(run.module, END) == END  # from a state of its own: again the same
