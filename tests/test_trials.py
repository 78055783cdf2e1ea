"""Trials: the actor is a candidate, and π_ref what the run stands for, until the actor is proved better."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Fit, Run
from hypothesis import given
from hypothesis import strategies as st
from test_phases_frozen import part, same, saved

from o2o_lightning.checkpoint.handover import read_handover
from o2o_lightning.data.online import OnlineData
from o2o_lightning.envs.episodes import Evaluation
from o2o_lightning.methods.o2 import td3
from o2o_lightning.methods.o2.constraint import Multiplier
from o2o_lightning.methods.o2.reference import Reference, Trials
from o2o_lightning.objectives.diagnostics import paired_gap
from o2o_lightning.phases.online import Online
from o2o_lightning.phases.trial import Court
from o2o_lightning.policies.load import load_policy

EPISODES = 4
HELD = [10.0, 20.0, 30.0, 40.0]  # returns of π_off from the evaluations' start states


@given(st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3)), min_size=3, max_size=30))
def test_the_gap_is_the_statistic_of_a_paired_t_test(pairs: list[tuple[float, float]]) -> None:
    ours, theirs = map(list, zip(*pairs, strict=True))
    differences = np.subtract(ours, theirs)
    if differences.std() > 1e-6 * (1.0 + np.abs(ours).max()):
        error = differences.std(ddof=1) / np.sqrt(len(differences))
        assert paired_gap(ours, theirs) == pytest.approx(differences.mean() / error, rel=1e-6, abs=1e-9)
    assert paired_gap(ours, theirs) == pytest.approx(-paired_gap(theirs, ours), rel=1e-9)


def test_start_states_that_are_hard_for_both_do_not_blur_the_gap() -> None:
    assert paired_gap([1.0, 101.0, 202.0], [0.0, 100.0, 200.0]) == pytest.approx(4.0)  # differences 1, 1, 2
    assert paired_gap([5.0, 5.0], [5.0, 5.0]) == 0.0
    assert paired_gap([6.0, 6.0], [5.0, 5.0]) == float("inf")


class Scripted(Online):
    """Evaluations by script: the actor's returns in turn, π_off's always :data:`HELD`; its confirmations likewise."""

    actors: list[list[float]]
    elsewhere: list[list[float]]
    asked: list[tuple[int, int]]
    seen: list[dict[str, torch.Tensor]]  # the actors that were evaluated

    def evaluate(self, policy: Any = None) -> Evaluation:
        returns = self.actors.pop(0) if policy is self.method.actor else HELD
        if policy is self.method.actor:
            self.seen.append({name: value.clone() for name, value in policy.state_dict().items()})
        return Evaluation(list(returns), [1] * EPISODES, None)

    def judge(self, policy: Any, episodes: int, round: int = 0) -> Evaluation:
        self.asked.append((episodes, round))
        return Evaluation(list(self.elsewhere.pop(0)), [1] * episodes, None)


def tried(
    fit: Fit,
    chain: dict[str, Run],
    pendulum: str,
    actors: list[list[float]],
    elsewhere: list[list[float]] = (),  # type: ignore[assignment]
    steps: int | None = None,
    **more: Any,
) -> Run:
    """One environment step and update a trial, the first of them before any: of π_on against π_off."""

    def phase() -> Scripted:
        method = td3.Online(
            reference=Reference("trials"), trials=Trials(**{"confirmations": EPISODES, "retreats": 0, **more}),
            policy_delay=1, multiplier=Multiplier(lr=0.0),
        )  # fmt: skip
        made = Scripted(method, str(chain["align"].checkpoint))
        made.actors, made.elsewhere, made.asked, made.seen = list(actors), list(elsewhere), [], []
        return made

    count = max(len(actors) - 1, 1) if steps is None else steps
    data = lambda: OnlineData(  # noqa: E731
        dataset=pendulum, env_steps=count, warmup_steps=0, eval_every=1, batch_size=32, chunk=1
    )
    return fit(phase, data)


WORSE, SAME, BETTER = [9.0, 17.0, 27.0, 37.0], [10.0, 21.0, 29.0, 40.0], [12.0, 21.0, 33.0, 44.0]


def test_an_actor_that_is_proved_worse_begins_anew_at_the_reference(
    chain: dict[str, Run], fit: Fit, pendulum: str
) -> None:
    run = tried(fit, chain, pendulum, [SAME, WORSE])
    end = run.end()
    assert same(part(end, "method.actor"), part(end, "method.offline_actor"))
    assert same(part(end, "method.target_actor"), part(end, "method.offline_actor"))
    assert same(part(end, "method.reference_policy"), part(end, "method.offline_actor"))
    optimizer: Any = run.trainer.optimizers[0]
    (actor,) = (group for group in optimizer.param_groups if group["name"] == "actor")
    assert all(not value.any() for p in actor["params"] for value in optimizer.state[p].values())
    assert float(run.module.method.log_multiplier.detach().exp()) == pytest.approx(4.0)
    assert run.module.facts()["trials"]["lost"] == 1


def test_one_episode_alone_proves_nothing_for_or_against_the_actor() -> None:
    asked: list[tuple[str, int]] = []
    elsewhere = {"actor": [8.0, 9.0, 13.0], "reference": [10.0, 10.0, 10.0]}

    def judge(policy: str, episodes: int, round: int) -> Evaluation:
        asked.append((policy, episodes))
        return Evaluation(elsewhere[policy], [1] * 3, None)

    method = SimpleNamespace(trials=Trials(confirmations=3), actor="actor", reference_policy="reference")
    court = Court(SimpleNamespace(method=method, judge=judge))  # type: ignore[arg-type]
    one, other = Evaluation([9.0], [1], None), Evaluation([10.0], [1], None)
    assert court.gap(one, other) == pytest.approx(paired_gap([9.0, 8.0, 9.0, 13.0], [10.0] * 4))
    assert court.gap(other, one) == pytest.approx(paired_gap([10.0, 8.0, 9.0, 13.0], [9.0, 10.0, 10.0, 10.0]))
    assert asked == [("actor", 3), ("reference", 3)] * 2
    assert court.gap(Evaluation([9.0, 8.0], [1] * 2, None), Evaluation([10.0] * 2, [1] * 2, None)) == pytest.approx(-3)
    assert len(asked) == 4  # of two there is a deviation


def halfway(own: dict[str, torch.Tensor], its: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: (own[name] + its[name]) / 2 for name in own}


def test_an_actor_that_is_lost_moves_half_of_the_way_back_and_goes_on_where_it_is_not(
    chain: dict[str, Run], fit: Fit, pendulum: str
) -> None:
    run = tried(fit, chain, pendulum, [SAME, WORSE, WORSE, SAME], steps=1, retreats=3)
    offline = dict(run.module.method.offline_actor.state_dict())
    _, lost, half, quarter = run.module.seen
    torch.testing.assert_close(half, halfway(lost, offline))
    torch.testing.assert_close(quarter, halfway(half, offline))
    end = run.end()
    for follower in ("method.actor", "method.target_actor"):
        torch.testing.assert_close(part(end, follower), quarter, rtol=0.0, atol=0.0)
    assert same(part(end, "method.reference_policy"), part(end, "method.offline_actor"))
    optimizer: Any = run.trainer.optimizers[0]
    (actor,) = (group for group in optimizer.param_groups if group["name"] == "actor")
    assert all(not value.any() for p in actor["params"] for value in optimizer.state[p].values())
    facts = run.module.facts()["trials"]
    assert (facts["lost"], facts["neither"]) == (0, 2)
    assert [point[:2] for point in facts["candidates"]] == [[0, 25.0], [1, 22.5], [1, 22.5], [1, 25.0]]
    assert float(run.module.method.log_multiplier.detach().exp()) == pytest.approx(0.25)


def test_where_every_retreat_is_lost_it_begins_anew(chain: dict[str, Run], fit: Fit, pendulum: str) -> None:
    run = tried(fit, chain, pendulum, [SAME, WORSE, WORSE, WORSE], steps=1, retreats=2)
    assert same(part(run.end(), "method.actor"), part(run.end(), "method.offline_actor"))
    assert run.module.facts()["trials"]["lost"] == 1
    assert float(run.module.method.log_multiplier.detach().exp()) == pytest.approx(4.0)


def test_a_retreat_that_is_proved_better_becomes_the_reference(chain: dict[str, Run], fit: Fit, pendulum: str) -> None:
    confirmed = [[5.0, 6.0, 7.0, 8.0], [4.0, 5.0, 6.0, 6.0]]
    run = tried(fit, chain, pendulum, [SAME, WORSE, BETTER], confirmed, steps=1, retreats=1)
    assert same(part(run.end(), "method.reference_policy"), run.module.seen[-1])
    assert run.module.curve[-1][1] == 27.5


def test_an_actor_that_is_proved_better_becomes_the_reference(chain: dict[str, Run], fit: Fit, pendulum: str) -> None:
    run = tried(fit, chain, pendulum, [SAME, BETTER], [[5.0, 6.0, 7.0, 8.0], [4.0, 5.0, 6.0, 6.0]])
    end = run.end()
    assert same(part(end, "method.reference_policy"), part(end, "method.actor"))
    assert not same(part(end, "method.actor"), part(end, "method.offline_actor"))
    assert float(run.module.method.reference_score) == pytest.approx(27.5)
    assert float(run.module.method.log_multiplier.detach().exp()) == pytest.approx(0.25)
    assert run.module.asked == [(EPISODES, 2)] * 2  # from other start states than the first trial's would have been


def test_a_lucky_evaluation_that_other_start_states_do_not_confirm_changes_nothing(
    chain: dict[str, Run], fit: Fit, pendulum: str
) -> None:
    run = tried(fit, chain, pendulum, [SAME, BETTER], [[1.0, 6.0, 3.0, 4.0], [9.0, 5.0, 6.0, 7.0]])
    end = run.end()
    assert same(part(end, "method.reference_policy"), part(end, "method.offline_actor"))
    assert not same(part(end, "method.actor"), part(end, "method.offline_actor"))  # it goes on where it is
    assert run.module.facts()["trials"]["neither"] == 2


def test_a_loss_within_the_tolerance_is_none(chain: dict[str, Run], fit: Fit, pendulum: str) -> None:
    run = tried(fit, chain, pendulum, [SAME, WORSE], tolerance=0.2)  # of 25; the actor has lost 2.5
    assert run.module.facts()["trials"]["lost"] == 0


@pytest.mark.parametrize("aligned", [WORSE, SAME, BETTER])
def test_pi_on_is_the_first_candidate(chain: dict[str, Run], fit: Fit, pendulum: str, aligned: list[float]) -> None:
    confirmed = [[5.0, 6.0, 7.0, 8.0], [4.0, 5.0, 6.0, 6.0]] if aligned is BETTER else []
    run = tried(fit, chain, pendulum, [aligned, SAME], confirmed)
    start, end = run.start, saved(chain["align"])
    actor = "method.offline_actor" if aligned is WORSE else "method.actor"
    reference = "method.actor" if aligned is BETTER else "method.offline_actor"
    assert same(part(start, "method.actor"), part(end, actor))
    assert same(part(start, "method.reference_policy"), part(end, reference))
    assert run.module.returns == {**run.module.returns, "aligned": float(np.mean(aligned)), "offline": 25.0}


def test_the_curve_is_the_references_and_never_falls(chain: dict[str, Run], fit: Fit, pendulum: str) -> None:
    confirmed = [[5.0, 6.0, 7.0, 8.0], [4.0, 5.0, 6.0, 6.0]]
    # an actor that has not learned since it began at the reference is not tried: nor is it after the first step
    run = tried(fit, chain, pendulum, [WORSE, WORSE, BETTER, WORSE, SAME], confirmed)
    assert [point[1] for point in run.module.curve] == [25.0, 25.0, 25.0, 27.5, 27.5]
    assert [point[:2] for point in run.module.facts()["trials"]["candidates"]] == [
        [0, 22.5],
        [2, 22.5],
        [3, 27.5],
        [4, 22.5],
    ]


def test_a_checkpoint_stands_for_its_reference_and_not_for_the_candidate(
    chain: dict[str, Run], fit: Fit, pendulum: str
) -> None:
    run = tried(fit, chain, pendulum, [SAME, SAME])
    source, observation = read_handover(run.checkpoint), np.array([[0.3, -0.8, 1.0]], np.float32)
    held, candidate = source.build_policy("reference_policy"), source.build_policy("actor")
    inputs = torch.from_numpy(source.build_normalizer().numpy(observation))
    expected, other = (policy(inputs).detach().numpy() * 2.0 for policy in (held, candidate))  # ±2 is Pendulum's unit
    np.testing.assert_allclose(load_policy(run.checkpoint)(observation), expected, rtol=1e-5)
    assert not np.allclose(expected, other)


@pytest.mark.parametrize(("share", "plays"), [(0.0, "actor"), (1.0, "reference_policy")])
def test_who_plays_a_training_episode_is_drawn_at_its_start(
    chain: dict[str, Run], fit: Fit, pendulum: str, share: float, plays: str
) -> None:
    method = tried(fit, chain, pendulum, [SAME, SAME], share=share).module.method
    method.before_step(0, -7.0, np.random.default_rng(0))
    assert method.explorer() is getattr(method, plays)
    assert method.played["reference" if share else "actor"] == [-7.0]


@pytest.mark.parametrize(
    ("trials", "share"),
    [([SAME, SAME], 0.2), ([SAME, SAME, SAME], 1 / 17), ([SAME, SAME, WORSE], 0.5)],
)
def test_where_nothing_is_lost_the_actor_plays_more_and_more(
    chain: dict[str, Run], fit: Fit, pendulum: str, trials: list[list[float]], share: float
) -> None:
    """The odds of π_ref fall as λ does; the first trial, of π_on, says nothing of what is learned."""
    method = tried(fit, chain, pendulum, trials, retreats=0).module.method
    assert method.share == pytest.approx(share)
    assert method.local_state()["share"] == method.share


@pytest.mark.parametrize(("share", "ease"), [(1.0, 4.0), (0.0, 4.0), (0.3, 1.0)])
def test_a_share_of_all_of_none_and_one_without_easing_stay(
    chain: dict[str, Run], fit: Fit, pendulum: str, share: float, ease: float
) -> None:
    method = tried(fit, chain, pendulum, [SAME, SAME, SAME], share=share, ease=ease).module.method
    assert method.share == pytest.approx(share)


def test_without_a_constraint_there_are_no_trials(
    chain: dict[str, Run], fit: Fit, pendulum: str, tmp_path: Path
) -> None:
    method = td3.Online(reference=Reference("trials"), constraint=False)
    assert not method.held
    assert method.stands_for == "actor"
