"""The reference policy by training's own returns, T139 to T150: no evaluation, and judges that can only put off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import killing
import numpy as np
import pytest
import torch
from conftest import Fit, Run
from hypothesis import given
from hypothesis import strategies as st
from test_phases_frozen import part, same

from o2o_lightning.cli.main import main
from o2o_lightning.data.online import OnlineData
from o2o_lightning.errors import UserError
from o2o_lightning.methods.o2 import td3
from o2o_lightning.methods.o2.evidence import Evidence, Returns
from o2o_lightning.methods.o2.reference import Reference
from o2o_lightning.objectives.diagnostics import fitted_weights, standardized_gap
from o2o_lightning.objectives.judges import bounds, differences, judges
from o2o_lightning.phases.gate import Gate
from o2o_lightning.phases.online import Online

DISCOUNT = 0.95


class World:
    """A random MDP of 30 states and 5 actions, with two policies ``[S, A]`` of it."""

    def __init__(self, seed: int, change: float = 0.3) -> None:
        self.chance = np.random.default_rng(seed)
        self.moves = self.chance.dirichlet(np.full(30, 0.1), (30, 5))  # [S, A, S]
        self.rewards = self.chance.normal(size=(30, 5))
        self.start = self.chance.dirichlet(np.ones(30))
        self.reference, other = self.chance.dirichlet(np.ones(5), (2, 30))
        self.policy = (1 - change) * self.reference + change * other

    def worth(self, policy: np.ndarray) -> tuple[np.ndarray, float]:
        """Q of a policy ``[S, A]``, and what its episodes are worth, by solving Bellman's equation."""
        onwards = np.einsum("sat,tb->satb", self.moves, policy).reshape(150, 150)
        q = np.linalg.solve(np.eye(150) - DISCOUNT * onwards, self.rewards.reshape(150)).reshape(30, 5)
        return q, float(self.start @ (policy * q).sum(1))

    def visited(self, policy: np.ndarray) -> np.ndarray:
        """Its discounted states ``[S]``, which sum to 1."""
        moves = np.einsum("sa,sat->st", policy, self.moves)
        return (1 - DISCOUNT) * np.linalg.solve(np.eye(30) - DISCOUNT * moves.T, self.start)


def softmax(logits: np.ndarray) -> np.ndarray:
    exponents = np.exp(logits - logits.max(1, keepdims=True))
    return exponents / exponents.sum(1, keepdims=True)


@pytest.mark.parametrize("seed", range(20))
def test_t139_judges_that_know_the_values_know_by_how_much_one_policy_is_better(seed: int) -> None:
    """Both identities: fitted values of π_ref on states of π, and those of π on states of π_ref."""
    world = World(seed)
    truth = world.worth(world.policy)[1] - world.worth(world.reference)[1]
    for of, states in ((world.reference, world.policy), (world.policy, world.reference)):
        # every transition of the MDP, as often as it happens: features are one of 150 state-action pairs
        features = torch.eye(150, dtype=torch.float64)
        following = torch.from_numpy(np.einsum("sat,tb->satb", world.moves, of).reshape(150, 150))
        reward = torch.from_numpy(world.rewards.reshape(150))
        # the fit has a ridge, which weighs less than a ten-thousandth of many rows alike
        exact = torch.linalg.solve(features - DISCOUNT * following, reward)
        shrunk = fitted_weights(features * 1e3, following * 1e3, reward * 1e3, DISCOUNT)
        torch.testing.assert_close(shrunk, exact, rtol=1e-4, atol=1e-4)
        own, theirs = (
            torch.from_numpy(np.einsum("sa,sb->sab", p, np.eye(30)).transpose(0, 2, 1).reshape(30, 150))
            for p in (world.policy, world.reference)
        )
        gaps = differences(own, theirs, exact[None], torch.arange(30))[:, 0].numpy()
        assert world.visited(states) @ gaps / (1 - DISCOUNT) == pytest.approx(truth, abs=1e-8)


def test_t140_equal_policies_differ_by_exactly_nothing() -> None:
    features = torch.randn(60, 7, dtype=torch.float64)
    episode = torch.arange(60) // 10
    gaps = differences(features, features.clone(), torch.randn(4, 7, dtype=torch.float64), episode)
    assert not gaps.any()
    assert bounds(gaps) == (0.0, 0.0)  # and an upper limit of 0 contradicts nothing


def test_differences_are_means_over_each_episode() -> None:
    own, theirs = torch.tensor([[1.0], [3.0], [8.0]]).double(), torch.zeros(3, 1).double()
    gaps = differences(own, theirs, torch.tensor([[1.0], [-2.0]]).double(), torch.tensor([0, 0, 1]))
    assert gaps.tolist() == [[2.0, -4.0], [8.0, -16.0]]
    lower, upper = bounds(gaps[:, :1])
    assert 2.0 <= lower < 5.0 < upper <= 8.0


def test_judges_are_fitted_to_draws_of_whole_episodes() -> None:
    torch.manual_seed(0)
    features, following = torch.randn(2, 200, 3, dtype=torch.float64)
    reward, episode = torch.randn(200, dtype=torch.float64), torch.arange(200) // 20
    found = judges(features, following, reward, episode, 0.9, 4)
    assert found.shape == (4, 3)
    assert len(found.unique(dim=0)) > 1
    candidates = []
    for drawn in range(1, 2**10):  # one of all the sets of ten episodes
        rows = torch.tensor([bool(drawn >> int(e) & 1) for e in episode])
        candidates.append(fitted_weights(features[rows], following[rows], reward[rows], 0.9))
    apart = (found[:, None] - torch.stack(candidates)).abs().amax(-1).amin(1)
    assert apart.max() < 1e-9


def test_t141_flat_returns_swap_at_most_once_in_a_hundred_overlapping_tests() -> None:
    swaps = []
    for seed in range(200):
        chance, evidence = np.random.default_rng(seed), Evidence(Returns(max_age=10**9))
        for _ in range(5):
            evidence.add(chance.normal(), of_reference=True)
        for test in range(100):
            evidence.add(chance.normal(), of_reference=False)
            if evidence.passes(1000 * test):
                evidence.swap(1000 * test)
        swaps.append(len(evidence.swaps))
    assert np.mean(swaps) <= 1.0


def simulated(truth: Any, seed: int) -> tuple[Evidence, float]:
    """100 training episodes, a test after each: what is known at the end, and what the policy held then is worth."""
    chance, evidence, held, since = np.random.default_rng(seed), Evidence(Returns(max_age=10**9)), truth(0), []
    for _ in range(5):
        evidence.add(held + chance.normal(), of_reference=True)
    for test in range(100):
        since.append(truth(test))
        evidence.add(truth(test) + chance.normal(), of_reference=False)
        if evidence.passes(1000 * test):
            evidence.swap(1000 * test)
            held = truth(test)
        elif evidence.dropped():
            since.append(test)
    return evidence, held


def test_t142_an_actor_that_rises_is_followed() -> None:
    ends = [simulated(lambda test: 0.05 * test, seed)[1] for seed in range(100)]
    assert np.mean(ends) > 4.3  # of 4.95
    assert np.quantile(ends, 0.05) > 3.5


def test_t148_a_collapse_is_reported_and_not_followed() -> None:
    """It rises to 1, and falls by 2 half of the way: the reference keeps what it had."""
    ends = [simulated(lambda test: 0.02 * test if test < 50 else -1.0, seed) for seed in range(100)]
    assert np.quantile([held for _, held in ends], 0.05) >= 0.0
    assert np.mean([evidence.drops > 0 for evidence, _ in ends]) > 0.9
    evidence = Evidence(Returns())
    for value in [5.0, 5.1, 4.9, 5.0, 5.05]:
        evidence.add(value, of_reference=True)
    for test in range(20):
        evidence.add(-1.0 + 0.01 * test, of_reference=False)
        assert not evidence.passes(1000 * test)
        if evidence.dropped():
            break
    assert test < 10  # within the window
    assert not evidence.swaps


def test_t144_a_critic_that_the_policy_climbed_lets_every_worse_policy_pass_and_separate_ones_few() -> None:
    """Tabular: π moves towards what a noisy Q of π_ref praises; that Q, and others as noisy, are asked about it."""
    climbed, separate = [], []
    for seed in range(200):
        world = World(seed)
        for _ in range(3):  # a reference that little can improve
            q = world.worth(world.reference)[0]
            world.reference = softmax(4 * q / q.std())
        q, worth = world.worth(world.reference)
        spread = (q - (world.reference * q).sum(1, keepdims=True)).std()
        noisy = [q + spread * 1.5 * world.chance.normal(size=q.shape) for _ in range(5)]
        policy = 0.7 * world.reference + 0.3 * softmax(np.log(world.reference) + noisy[0] / spread)
        if world.worth(policy)[1] >= worth:
            continue
        own, theirs = (
            torch.from_numpy(np.einsum("sa,sb->sab", p, np.eye(30)).transpose(0, 2, 1).reshape(30, 150))
            for p in (policy, world.reference)
        )
        states = torch.from_numpy(world.visited(policy))
        for verdicts, which in ((climbed, noisy[:1]), (separate, noisy[1:])):
            weights = torch.from_numpy(np.stack(which).reshape(len(which), 150))
            gap = (states[:, None] * differences(own, theirs, weights, torch.arange(30))).sum(0).mean()
            verdicts.append(float(gap) > 0.0)
    assert len(climbed) > 20
    assert np.mean(climbed) > 0.9
    assert np.mean(separate) <= 0.35


def test_t145_no_best_is_kept() -> None:
    evidence = Evidence(Returns(window=5, least=5))
    for value in [0.0, 0.1, -0.1, 0.05, -0.05]:
        evidence.add(value, of_reference=True)
    for value in [3.0, 3.2, 2.8, 3.1, 2.9]:
        evidence.add(value, of_reference=False)
    assert evidence.passes(1000)
    evidence.swap(1000)
    assert evidence.incumbent == [3.0, 3.2, 2.8, 3.1, 2.9]  # the window, by whose mean it is held from now on
    assert evidence.swaps[0][1] == pytest.approx(3.0)
    for value in [1.0, 5.0, 0.0, 6.0, 4.0]:  # 3.2 on average, and far from proved
        evidence.add(value, of_reference=False)
    assert not evidence.passes(2000)
    for value in [3.4, 3.5, 3.3, 3.4, 3.4]:
        evidence.add(value, of_reference=False)
    assert evidence.passes(3000)


@given(st.lists(st.floats(-100, 100), min_size=5, max_size=20), st.lists(st.floats(-100, 100), min_size=5, max_size=9),
       st.floats(-1e3, 1e3))  # fmt: skip
def test_t146_a_shift_of_all_returns_changes_nothing(ours: list[float], theirs: list[float], shift: float) -> None:
    gap = standardized_gap(ours, theirs)
    if np.std(ours) + np.std(theirs) > 1e-3:
        shifted = standardized_gap([x + shift for x in ours], [x + shift for x in theirs])
        assert shifted == pytest.approx(gap, rel=1e-4, abs=1e-6)


def test_t146_a_shift_of_all_rewards_moves_every_judges_values_alike() -> None:
    torch.manual_seed(0)
    states = torch.randn(400, 3, dtype=torch.float64)
    features = torch.cat((torch.ones(400, 1), states), 1).double()  # never terminated: the first is V's level
    following = torch.cat((torch.ones(400, 1), states.roll(1, 0)), 1).double()
    reward, episode = states @ torch.tensor([1.0, -2.0, 0.5]).double(), torch.arange(400) // 20
    own, theirs = features + torch.randn(400, 4).double() * torch.tensor([0.0, 0.3, 0.3, 0.3]), features
    plain, moved = (
        differences(own, theirs, judges(features, following, reward + c, episode, 0.9, 4), episode) for c in (0.0, 7.0)
    )
    assert (plain - moved).abs().max() < 0.02 * plain.abs().max()


def test_t150_an_actor_that_is_as_good_becomes_the_reference_at_the_age_that_is_told() -> None:
    evidence = Evidence(Returns(max_age=30_000))
    for value in [0.0, 1.0, 2.0, 3.0, 4.0]:
        evidence.add(value, of_reference=True)
        evidence.add(value, of_reference=False)
    assert not evidence.passes(29_999)
    assert evidence.passes(30_000)
    evidence.swap(30_000)
    for value in [0.0, 1.0, 2.0, 3.0, 4.0]:
        evidence.add(value, of_reference=False)
    assert not evidence.passes(59_999)
    assert evidence.passes(60_000)


def test_a_worse_actor_does_not_become_the_reference_at_any_age() -> None:
    evidence = Evidence(Returns())
    for value in [10.0, 11.0, 12.0, 13.0, 14.0]:
        evidence.add(value, of_reference=True)
        evidence.add(value - 10.0, of_reference=False)
    assert not evidence.passes(10**6)


@pytest.mark.parametrize(("aligned", "passes"), [(0.5, True), (0.0, True), (-0.5, False)])
def test_at_the_first_test_the_aligned_policy_need_only_be_no_worse(aligned: float, passes: bool) -> None:
    evidence = Evidence(Returns(), tie=True)
    for value in [0.0, 1.0, 2.0, 3.0, 4.0]:
        evidence.add(value, of_reference=True)
        assert not evidence.passes(100)  # too few to be a test
        evidence.add(value + aligned, of_reference=False)
    assert evidence.passes(1000) is passes
    assert evidence.passes(2000) is False


def test_judges_put_a_swap_off_for_a_while_and_decide_nothing() -> None:
    evidence = Evidence(Returns(patience=3))
    assert evidence.overruled(True)
    for _ in range(2):
        evidence.add(1.0, of_reference=False)
        assert evidence.overruled(True)
    evidence.add(1.0, of_reference=False)
    assert not evidence.overruled(True)  # from then on returns decide
    evidence.forget()
    assert not evidence.overruled(False)


# ---- in a run ------------------------------------------------------------------------------------------------------

SHORT = {"max_episode_steps": 8}


def ran(
    fit: Fit, chain: dict[str, Run], pendulum: str, mode: Any = "returns", evaluated: bool = False, **more: Any
) -> Run:
    """160 environment steps, 20 episodes, of which updates begin after 40."""
    rule = {"window": 6, "least": 3, "every": 8, **more}

    def phase() -> Online:
        method = td3.Online(reference=Reference(mode), returns=Returns(**rule), policy_delay=1)
        return Online(method, str(chain["align"].checkpoint))

    data = lambda: OnlineData(  # noqa: E731
        dataset=pendulum, env_steps=160, warmup_steps=40, batch_size=16, chunk=8, env_kwargs=SHORT,
        eval_every=40, eval_episodes=2 if evaluated else 0,
    )  # fmt: skip
    return fit(phase, data)


def apart(state: dict[str, torch.Tensor], other: str) -> float:
    """How far the reference policy's weights lie from another's at most; an update moves them by up to 1e-4."""
    theirs = part(state, f"method.{other}")
    mine = part(state, "method.reference_policy")
    return max(float((mine[name] - theirs[name]).abs().max()) for name in mine)


def test_t147_reporting_costs_what_it_says_and_changes_nothing(chain: dict[str, Run], fit: Fit, pendulum: str) -> None:
    silent, reported = ran(fit, chain, pendulum), ran(fit, chain, pendulum, evaluated=True)
    assert silent.module.eval_env_steps == 0
    assert silent.module.curve == []
    assert reported.module.eval_env_steps > 0
    assert [point[0] for point in reported.module.curve] == [0, 40, 80, 120, 160]
    assert same(silent.end(), reported.end())
    assert silent.module.facts()["returns_gate"] == reported.module.facts()["returns_gate"]


def test_both_ends_of_the_hand_over_are_known_where_evaluations_are_made(
    chain: dict[str, Run], fit: Fit, pendulum: str
) -> None:
    run = ran(fit, chain, pendulum, evaluated=True)
    assert run.module.curve[0][1] == run.module.returns["offline"]  # π_ref begins as π_off
    assert run.module.returns["aligned"] != run.module.returns["offline"]


def test_the_reference_plays_every_second_episode_until_it_is_known(
    chain: dict[str, Run], fit: Fit, pendulum: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    players: list[bool] = []
    ended = Gate.ended

    def heard(gate: Gate, interaction: Any) -> None:
        if not interaction.episode_length:
            players.append(gate.method.explorer() is gate.method.reference_policy)
        ended(gate, interaction)

    monkeypatch.setattr(Gate, "ended", heard)
    ran(fit, chain, pendulum)
    assert players == [True, False, True, False, True] + [False] * 15


def test_the_actor_that_passes_becomes_what_the_run_stands_for(
    chain: dict[str, Run], fit: Fit, pendulum: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Evidence, "passes", lambda evidence, env_steps: env_steps == 160)
    run = ran(fit, chain, pendulum)
    end = run.end()
    assert run.module.method.stands_for == "reference_policy"
    assert apart(end, "actor") < 2e-4 < apart(end, "offline_actor")  # the update of that step has come after it
    ((steps, ours, theirs, _),) = run.module.facts()["returns_gate"]["swaps"]
    assert steps == 160
    assert float(run.module.method.reference_score) == pytest.approx(ours)
    assert theirs != ours


def test_a_drop_is_told_and_with_restore_the_actor_begins_anew(
    chain: dict[str, Run], fit: Fit, pendulum: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(evidence: Evidence, env_steps: int) -> bool:
        evidence.failures = evidence.rule.alarm if env_steps == 160 else 0
        return False

    monkeypatch.setattr(Evidence, "passes", fails)
    kept, restored = ran(fit, chain, pendulum), ran(fit, chain, pendulum, restore=True)
    for run in (kept, restored):
        assert run.module.facts()["returns_gate"]["drops"] == 1
        assert same(part(run.end(), "method.reference_policy"), part(run.end(), "method.offline_actor"))
    assert not same(part(kept.end(), "method.actor"), part(kept.end(), "method.offline_actor"))
    assert apart(restored.end(), "actor") < 2e-4 < apart(kept.end(), "actor")


def test_t143_judges_teach_no_network(
    chain: dict[str, Run], fit: Fit, pendulum: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = lambda evidence, env_steps: env_steps in (80, 120)  # noqa: E731
    monkeypatch.setattr(Evidence, "passes", passes)
    limits: list[tuple[float, float]] = []
    judged = Gate.judged

    def recorded(gate: Gate) -> tuple[float, float]:
        limits.append(judged(gate))
        return limits[-1]

    monkeypatch.setattr(Gate, "judged", recorded)
    run = ran(fit, chain, pendulum, "judged")
    assert len(limits) == 2
    assert all(lower <= upper for lower, upper in limits)
    known = iter(limits)
    monkeypatch.setattr(Gate, "judged", lambda gate: next(known))
    assert same(ran(fit, chain, pendulum, "judged").end(), run.end())


@pytest.mark.parametrize("upper", [-0.1, 0.0])
def test_judges_keep_what_they_contradict_from_becoming_the_reference(
    chain: dict[str, Run], fit: Fit, pendulum: str, monkeypatch: pytest.MonkeyPatch, upper: float
) -> None:
    monkeypatch.setattr(Evidence, "passes", lambda evidence, env_steps: env_steps == 160)
    monkeypatch.setattr(Gate, "judged", lambda gate: (-1.0, upper))
    run = ran(fit, chain, pendulum, "judged")
    assert len(run.module.facts()["returns_gate"]["swaps"]) == (upper == 0.0)


def test_t144_judges_that_praise_what_returns_do_not_swap_nothing(
    chain: dict[str, Run], fit: Fit, pendulum: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Evidence, "passes", lambda evidence, env_steps: False)
    monkeypatch.setattr(Gate, "judged", lambda gate: (5.0, 9.0))
    assert ran(fit, chain, pendulum, "judged").module.facts()["returns_gate"]["swaps"] == []


def test_what_judges_are_fitted_to_is_not_learned_from(
    chain: dict[str, Run], fit: Fit, pendulum: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[torch.Tensor] = []
    learned: list[torch.Tensor] = []
    begin = Gate.begin

    def begun(gate: Gate) -> None:
        begin(gate)
        assert gate.held_out is not None
        held.append(gate.held_out)
        store = gate.phase.data.store
        assert store is not None
        learned.append(store.td_rows.clone())

    monkeypatch.setattr(Gate, "begin", begun)
    run = ran(fit, chain, pendulum, "judged")
    assert len(held[0]) == 84  # 12 of 60 episodes of 8 steps, of which the last has no known successor
    assert not set(held[0].tolist()) & set(learned[0].tolist())
    store = run.module.data.store
    assert store is not None
    assert store.td_count == 420  # and all of it is the next phase's


@pytest.mark.parametrize("online", ["o2td3", "o2ppo"])
def test_t149_a_killed_run_goes_on_with_the_same_evidence(online: str, tmp_path: Path) -> None:
    mode = "judged" if online == "o2td3" else "returns"
    argv = [
        "fit", "--phase", "all", f"online={online}", "steps.offline=20", "steps.reevaluate=20", "steps.align=20",
        "steps.env=192", "checkpoint_every=40", "--data.env_kwargs", "{max_episode_steps: 8}",
        "--data.eval_episodes", "0", "--model.reference.mode", mode, "--model.returns.every", "8",
        "--model.returns.least", "3", "--model.returns.max_age", "24", "--data.batch_size", "16", "--data.chunk", "8",
        "--trainer.log_every_n_steps", "10",
        *(["--data.rollout", "32", "--data.epochs", "2"] if online == "o2ppo" else ["--data.warmup_steps", "20"]),
    ]  # fmt: skip
    expected, found, log = tmp_path / "expected", tmp_path / "found", tmp_path / "log"
    assert killing.run([*argv, "--run_dir", str(expected)], log) == 0, log.read_text()
    assert killing.run([*argv, "--run_dir", str(found)], log, killing.die_at("env_step", 131)) == -9, log.read_text()
    assert killing.run(["resume", str(found)], log) == 0, log.read_text()
    assert killing.differences(expected, found, ["online"]) == []
    assert '"swaps": [[' in (found / "online" / "summary.json").read_text().replace("\n", "").replace("  ", "")


@pytest.mark.parametrize(
    ("mode", "data", "line"),
    [
        ("trials", {"eval_episodes": 0}, r"--data\.eval_episodes 0: the reference policy follows evaluations"),
        ("best", {"eval_episodes": 0}, r"--data\.eval_episodes 0: the reference policy follows evaluations"),
        ("trials", {"eval_every": 0}, r"--data\.eval_every 0: the reference policy follows evaluations"),
        ("judged", {"mix": "all"}, r"reference\.mode judged: its values are of episodes that nothing else learns from"),
        ("judged", {"seeds": 9}, r"reference\.mode judged: its values are of episodes that nothing else learns from"),
        ("judged", {"dataset": None, "mix": "none", "env_id": "Pendulum-v1"}, r"reference\.mode judged: values are"),
    ],
)
def test_what_a_mode_needs_and_does_not_get_is_refused(
    chain: dict[str, Run], fit: Fit, pendulum: str, mode: Any, data: dict[str, Any], line: str
) -> None:
    method = td3.Online(reference=Reference(mode))
    with pytest.raises(UserError, match=line):
        fit(
            lambda: Online(method, str(chain["align"].checkpoint)),
            lambda: OnlineData(**{"dataset": pendulum, "env_steps": 1, **data}),
        )


def test_it_is_refused_before_anything_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["fit", "--phase", "all", "--data.eval_episodes", "0", "--run_dir", str(tmp_path / "run")]
    assert main(argv) == 2
    assert main([*argv, "preset=paper", "--model.reference.mode", "frozen", "--model.hand_on", "better"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "--data.eval_episodes 0: the reference policy follows evaluations" in first
    assert "--model.hand_on better: episodes of both tell which is, and --data.eval_episodes 0 plays none" in second
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(("random_steps", "counted"), [(0, 5), (8, 4), (12, 3), (40, 0)])
def test_an_episode_that_chance_has_played_says_nothing_of_a_policy(
    chain: dict[str, Run], fit: Fit, pendulum: str, random_steps: int, counted: int
) -> None:
    method = lambda mode: td3.Online(reference=Reference(mode), returns=Returns(window=6, least=3))  # noqa: E731
    data = lambda: OnlineData(  # noqa: E731
        dataset=pendulum, env_steps=40, warmup_steps=random_steps, warmup_by="uniform", batch_size=16, chunk=8,
        env_kwargs=SHORT, eval_every=40, eval_episodes=1,
    )  # fmt: skip
    start = str(chain["align"].checkpoint)
    evidence = fit(lambda: Online(method("returns"), start), data).module.gate.known
    assert len(evidence.challenger) + len(evidence.incumbent) == counted
    played = fit(lambda: Online(method("trials"), start), data).module.method.played
    assert sum(map(len, played.values())) == max(counted - 1, 0)  # the last is counted when the next begins


def test_a_command_that_plays_episodes_wants_one(chain: dict[str, Run], capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["test", "--ckpt_path", str(chain["align"].checkpoint), "--data.env_id", "Pendulum-v1"]
    assert main([*argv, "--data.eval_episodes", "0"]) == 2
    assert "--data.eval_episodes 0: what is asked for plays episodes. Pass at least 1." in capsys.readouterr().err


@pytest.mark.parametrize("option", [{"least": 1}, {"window": 4}, {"every": 0}, {"patience": 0}])
def test_counts_that_decide_nothing_are_refused(option: dict[str, int]) -> None:
    with pytest.raises(UserError, match=rf"--model\.returns\.{next(iter(option))}"):
        Returns(**option)
