"""What each TD3 phase must leave alone, bit for bit, and what it takes over from the phase before (T21–T23, D47)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import lightning as L
import pytest
import torch
from conftest import HIDDEN, Fit, Run, state_of
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from o2o_lightning.data.module import OfflineData
from o2o_lightning.data.online import OnlineData
from o2o_lightning.envs.episodes import Evaluation
from o2o_lightning.methods.o2 import td3
from o2o_lightning.methods.o2.reference import Reference, Trials
from o2o_lightning.phases.align import Align
from o2o_lightning.phases.online import Online
from o2o_lightning.phases.reevaluate import Reevaluate

State = dict[str, Tensor]


def part(state: State, prefix: str) -> State:
    found = {key.removeprefix(prefix + "."): value for key, value in state.items() if key.startswith(prefix + ".")}
    assert found, prefix
    return found


def same(first: State, second: State) -> bool:
    assert first.keys() == second.keys()
    return all(torch.equal(first[key], second[key]) for key in first)


def saved(run: Run) -> State:
    return dict(torch.load(run.checkpoint, weights_only=True)["state_dict"])


class Recorder(Checkpoint):
    """π, π_ref and the best score after every environment step and what follows it; called after all others."""

    def __init__(self) -> None:
        self.policy: list[State] = []
        self.reference: list[State] = []
        self.best: list[float] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.policy.append(state_of(pl_module.method.actor))
        self.reference.append(state_of(pl_module.method.reference_policy))
        self.best.append(float(pl_module.method.reference_score))

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        self.on_train_start(trainer, pl_module)

    def changes(self) -> list[int]:
        steps = range(1, len(self.reference))
        return [step for step in steps if not same(self.reference[step - 1], self.reference[step])]


def online(
    fit: Fit, chain: dict[str, Run], pendulum: str, scores: Iterable[float], reference: Reference, steps: int
) -> tuple[Run, Recorder]:
    """One environment step a chunk, with evaluations that give ``scores``: π_on first, then π_off, then in turn."""
    recorder, given = Recorder(), iter(scores)

    def data() -> OnlineData:
        made = OnlineData(dataset=pendulum, env_steps=steps, warmup_steps=0, eval_every=2, batch_size=32, chunk=1)
        made.evaluate = lambda actor: Evaluation([next(given)], [1], None)  # type: ignore[method-assign]
        return made

    start = str(chain["align"].checkpoint)
    run = fit(lambda: Online(td3.Online(reference=reference), start), data, callbacks=[recorder])
    assert len(recorder.policy) == steps + 1
    return run, recorder


# ---- re-evaluation and alignment ---------------------------------------------------------------------------------


def test_re_evaluation_leaves_the_policy_and_trains_a_fresh_critic(chain: dict[str, Run]) -> None:
    offline, run = saved(chain["offline"]), chain["reevaluate"]
    end = saved(run)
    for actor in ("method.actor", "method.offline_actor"):  # the latter is the target actor
        assert same(part(end, actor), part(offline, "method.actor")), actor
    for critic in ("method.critic", "method.target_critic"):
        assert not same(part(end, critic), part(run.start, critic)), critic
    # fresh: not the offline critic, which has no LayerNorm
    assert "members.0.norms.0.weight" in part(run.start, "method.critic")
    assert same(part(run.start, "method.critic"), part(run.start, "method.target_critic"))


def test_re_evaluation_tracks_the_target_at_every_update(chain: dict[str, Run], fit: Fit, pendulum: str) -> None:
    run = fit(
        lambda: Reevaluate(td3.Reevaluate(hidden=HIDDEN), str(chain["offline"].checkpoint)),
        lambda: OfflineData(dataset=pendulum, batch_size=32),
        1,
    )
    end, key = run.end(), "method.{}.members.1.linears.0.weight"
    expected = 0.995 * run.start[key.format("target_critic")] + 0.005 * end[key.format("critic")]
    torch.testing.assert_close(end[key.format("target_critic")], expected)


def test_alignment_leaves_the_target_critics_and_the_offline_policy(chain: dict[str, Run]) -> None:
    before, run = saved(chain["reevaluate"]), chain["align"]
    end = saved(run)
    for frozen in ("method.target_critic", "method.offline_actor"):
        assert same(part(end, frozen), part(before, frozen)), frozen
    assert not same(part(end, "method.actor"), part(before, "method.actor"))
    for i in range(2):
        assert not same(part(end, f"method.critic.members.{i}"), part(before, f"method.critic.members.{i}")), i


def test_alignment_starts_from_the_re_evaluated_critic_and_its_own_target(chain: dict[str, Run]) -> None:
    before, run = saved(chain["reevaluate"]), chain["align"]
    for net in ("method.critic", "method.target_critic", "method.actor"):
        assert same(part(run.start, net), part(before, net)), net


def test_alignment_may_start_from_the_offline_critic(chain: dict[str, Run], fit: Fit, pendulum: str) -> None:
    before = saved(chain["offline"])
    run = fit(
        lambda: Align(td3.Align(), str(chain["offline"].checkpoint)),
        lambda: OfflineData(dataset=pendulum, batch_size=32, eval_episodes=1),
        2,
    )
    for net in ("method.critic", "method.target_critic", "method.actor"):
        assert same(part(run.start, net), part(before, net)), net
    assert same(part(run.end(), "method.offline_actor"), part(before, "method.actor"))


# ---- online ------------------------------------------------------------------------------------------------------


def test_online_targets_start_as_copies_of_what_was_aligned(chain: dict[str, Run], fit: Fit, pendulum: str) -> None:
    aligned = saved(chain["align"])
    run, _ = online(fit, chain, pendulum, [2.0, 1.0, 0.0], Reference(), 1)
    for net, source in (
        ("method.critic", "method.critic"),
        ("method.target_critic", "method.critic"),
        ("method.actor", "method.actor"),
        ("method.target_actor", "method.actor"),
        ("method.offline_actor", "method.offline_actor"),
    ):
        assert same(part(run.start, net), part(aligned, source)), net
    assert not same(part(aligned, "method.target_critic"), part(aligned, "method.critic"))


@pytest.mark.parametrize("source", ["reevaluate", "offline"])
def test_without_alignment_the_online_targets_go_on_from_the_phase_before(
    chain: dict[str, Run], fit: Fit, pendulum: str, source: str
) -> None:
    before = saved(chain[source])
    run = fit(
        lambda: Online(td3.Online(constraint=False), str(chain[source].checkpoint)),
        lambda: OnlineData(dataset=pendulum, env_steps=2, warmup_steps=2, eval_episodes=1),
    )
    for net in ("method.critic", "method.target_critic", "method.actor", "method.target_actor"):
        # re-evaluation moves no policy, so that its target actor is its actor
        gone = source == "reevaluate" and net == "method.target_actor"
        assert same(part(run.start, net), part(before, "method.actor" if gone else net)), net


def test_the_reference_moves_only_where_a_score_beats_every_earlier_one(
    chain: dict[str, Run], fit: Fit, pendulum: str
) -> None:
    scores = [1.0, 3.0, 2.0, 3.0, 5.0, 4.0, 5.0, 6.0, 0.0]  # π_on, π_off, then steps 2, 4, …, 14
    run, recorder = online(fit, chain, pendulum, scores, Reference(), 14)
    assert recorder.changes() == [6, 12]
    for step in (6, 12):
        assert same(recorder.reference[step], recorder.policy[step])
    assert recorder.best == [3.0] * 6 + [5.0] * 6 + [6.0] * 3
    assert [point[0] for point in run.module.curve] == [0, 2, 4, 6, 8, 10, 12, 14]


def test_fine_tuning_leaves_the_offline_policy_and_moves_all_that_learns(
    chain: dict[str, Run], fit: Fit, pendulum: str
) -> None:
    run, _ = online(fit, chain, pendulum, [1.0] * 4, Reference(), 4)
    end = saved(run)
    assert same(part(end, "method.offline_actor"), part(saved(chain["offline"]), "method.actor"))
    for net in ("method.actor", "method.critic", "method.target_actor", "method.target_critic"):
        assert not same(part(end, net), part(run.start, net)), net


def test_the_reference_in_interval_mode_moves_after_the_last_updates_of_each_period(
    chain: dict[str, Run], fit: Fit, pendulum: str
) -> None:
    _, recorder = online(fit, chain, pendulum, [9.0] * 7, Reference(mode="interval", period=3), 10)
    assert recorder.changes() == [4, 7, 10]
    for step in (4, 7, 10):  # seen when the next step has been made: the policy as steps 3, 6, 9 left it
        assert same(recorder.reference[step], recorder.policy[step - 1])


def test_a_frozen_reference_never_moves(chain: dict[str, Run], fit: Fit, pendulum: str) -> None:
    _, recorder = online(fit, chain, pendulum, [float(i) for i in range(6)], Reference(mode="frozen"), 8)
    assert recorder.changes() == []
    assert not same(recorder.policy[0], recorder.policy[-1])


@pytest.mark.parametrize(("start", "expected"), [("best", "actor"), ("aligned", "actor"), ("offline", "offline_actor")])
def test_an_interval_reference_starts_without_an_evaluation(
    chain: dict[str, Run], fit: Fit, pendulum: str, start: Any, expected: str
) -> None:
    method = td3.Online(reference=Reference("interval", start, period=3))
    data = OnlineData(pendulum, env_steps=3, warmup_steps=0, eval_every=0, eval_episodes=1)
    run = fit(Online(method, str(chain["align"].checkpoint)), data)
    assert [point[0] for point in run.module.curve] == [3]  # the end's alone
    assert same(part(saved(run), "method.reference_policy"), part(run.start, f"method.{expected}"))


@pytest.mark.parametrize(
    ("start", "aligned", "offline", "expected"),
    [
        ("best", 2.0, 1.0, "method.actor"),
        ("best", 1.0, 2.0, "method.offline_actor"),
        ("best", 1.0, 1.0, "method.offline_actor"),
        ("aligned", 1.0, 2.0, "method.actor"),
        ("offline", 2.0, 1.0, "method.offline_actor"),
    ],
)
def test_the_first_reference_is_the_better_policy_or_the_one_asked_for(
    chain: dict[str, Run], fit: Fit, pendulum: str, start: Any, aligned: float, offline: float, expected: str
) -> None:
    run, recorder = online(fit, chain, pendulum, [aligned, offline, 0.0], Reference(start=start), 1)
    assert same(part(run.start, "method.reference_policy"), part(run.start, expected))
    assert recorder.best[0] == (aligned if expected == "method.actor" else offline)
    assert run.module.returns["aligned"] == aligned
    assert run.module.returns["offline"] == offline


@pytest.mark.parametrize("mode", ["best", "trials", "returns"])
@pytest.mark.parametrize(("aligned", "offline", "goes"), [((3, 5), (0, 2), "actor"), ((3, 5), (2, 4), "offline_actor")])
def test_the_policy_that_goes_online_is_the_better_one_only_where_returns_tell_them_apart(
    chain: dict[str, Run], fit: Fit, pendulum: str, aligned: Any, offline: Any, goes: str, mode: Any
) -> None:
    # of gaps of 3 and of 1 with a deviation of √2 each: 2.1 and 0.7 standard errors, of which 1.28 are asked for
    class Judged(Online):
        def judge(self, policy: Any, episodes: int, round: int = 0) -> Any:
            returns = aligned if policy is self.method.actor else offline
            return Evaluation([float(x) for x in returns], [1, 1], None)

    start = str(chain["align"].checkpoint)
    run = fit(
        lambda: Judged(td3.Online(hand_on="better", reference=Reference(mode), trials=Trials(confidence=1e9)), start),
        lambda: OnlineData(dataset=pendulum, env_steps=1, eval_episodes=2),
    )
    before = part(chain["align"].end(), f"method.{goes}")
    assert same(part(run.start, "method.actor"), before)
    assert same(part(run.start, "method.target_actor"), before)


def test_the_offline_policy_goes_online_with_the_aligned_critic_if_asked_for(
    chain: dict[str, Run], fit: Fit, pendulum: str
) -> None:
    run = fit(
        lambda: Online(td3.Online(hand_on="offline"), str(chain["align"].checkpoint)),
        lambda: OnlineData(dataset=pendulum, env_steps=1, eval_episodes=1),
    )
    end = chain["align"].end()
    for name in ("actor", "target_actor", "reference_policy"):
        assert same(part(run.start, f"method.{name}"), part(end, "method.offline_actor"))
    assert same(part(run.start, "method.critic"), part(end, "method.critic"))
    assert run.module.returns["aligned"] == run.module.returns["offline"]


# ---- optimizer states --------------------------------------------------------------------------------------------


def ends_with(run: Run, prefix: str) -> dict[str, State]:
    """Adam's moments in a checkpoint by parameter name."""
    optimizer = torch.load(run.checkpoint, weights_only=True)["optimizer_states"][0]
    return {
        name: optimizer["state"][index]
        for group in optimizer["param_groups"]
        for name, index in zip(group["param_names"], group["params"], strict=True)
        if index in optimizer["state"] and name.startswith(prefix)
    }


def assert_same_moments(found: dict[str, State], expected: dict[str, State]) -> None:
    assert expected
    assert found.keys() == expected.keys()
    for name in expected:
        assert same(found[name], expected[name]), name


def test_no_moments_are_carried_out_of_the_offline_phase(chain: dict[str, Run], fit: Fit, pendulum: str) -> None:
    assert chain["reevaluate"].start_moments == {}
    run = fit(
        lambda: Online(td3.Online(constraint=False), str(chain["offline"].checkpoint)),
        lambda: OnlineData(dataset=pendulum, env_steps=1, eval_episodes=1),
    )
    assert run.start_moments == {}


def test_the_critics_moments_go_from_re_evaluation_into_alignment(chain: dict[str, Run]) -> None:
    assert_same_moments(chain["align"].start_moments, ends_with(chain["reevaluate"], "method.critic"))


def test_the_moments_of_actor_and_critic_go_from_alignment_into_fine_tuning(
    chain: dict[str, Run], fit: Fit, pendulum: str
) -> None:
    run, _ = online(fit, chain, pendulum, [1.0] * 3, Reference(), 1)
    assert_same_moments(run.start_moments, ends_with(chain["align"], "method."))
    assert {name.split(".")[1] for name in run.start_moments} == {"actor", "critic"}


@pytest.mark.parametrize("moments", ["fresh", "rescaled"])
def test_the_policys_moments_may_begin_anew_or_at_the_size_of_the_online_loss(
    chain: dict[str, Run], fit: Fit, pendulum: str, moments: Any
) -> None:
    run = fit(
        lambda: Online(td3.Online(actor_moments=moments), str(chain["align"].checkpoint)),
        lambda: OnlineData(dataset=pendulum, env_steps=1, eval_episodes=1),
    )
    before = ends_with(chain["align"], "method.")
    critic = {name: state for name, state in before.items() if name.startswith("method.critic")}
    assert_same_moments({name: run.start_moments[name] for name in critic}, critic)
    actor = {name: run.start_moments[name] for name in before.keys() - critic.keys() if name in run.start_moments}
    if moments == "fresh":
        assert actor == {}
        return
    # the online loss is the alignment's over mean|Q_1(s, π(s))|, of some states of the dataset
    method, batch = run.module.method, run.module.sampled()
    with torch.no_grad():
        q = method.critic.first(batch["observation"], run.module.policy()(batch["observation"])).abs().mean()
    for name, state in actor.items():
        torch.testing.assert_close(state["exp_avg"] * q, before[name]["exp_avg"], rtol=1e-3, atol=0)
        torch.testing.assert_close(state["exp_avg_sq"] * q**2, before[name]["exp_avg_sq"], rtol=1e-3, atol=0)
        assert state["step"] == before[name]["step"]
    assert actor


def test_learning_rates_are_the_online_phases_own_and_not_the_carried_ones(
    chain: dict[str, Run], fit: Fit, pendulum: str
) -> None:
    run = fit(
        lambda: Online(td3.Online(actor_lr=0.5, critic_lr=0.25), str(chain["align"].checkpoint)),
        lambda: OnlineData(dataset=pendulum, env_steps=1, eval_episodes=1),
    )
    groups = run.trainer.optimizers[0].param_groups
    assert {group["name"]: group["lr"] for group in groups} == {"actor": 0.5, "critic": 0.25, "multiplier": 5e-5}


def test_the_first_multiplier_update_moves_its_logarithm_by_5e_5(
    chain: dict[str, Run], fit: Fit, pendulum: str
) -> None:
    # the first step has no update (one transition is no batch), the second and third make one each
    run, _ = online(fit, chain, pendulum, [1.0] * 5, Reference(), 3)
    assert run.module.updates == 2
    assert abs(float(run.module.method.log_multiplier.detach())) == pytest.approx(5e-5, rel=1e-3)
