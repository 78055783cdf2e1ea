"""Re-evaluation and alignment measure whether they have settled, and end there if they are asked to."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import killing
import pytest
import torch
from conftest import HIDDEN, Fit, Run
from hypothesis import given
from hypothesis import strategies as st
from test_phases_frozen import part, same

from o2o_lightning.callbacks.convergence import Convergence, ConvergenceWatch
from o2o_lightning.checkpoint.handover import read_handover
from o2o_lightning.cli.command import split
from o2o_lightning.cli.compose import compose
from o2o_lightning.cli.main import main
from o2o_lightning.data.module import OfflineData
from o2o_lightning.data.online import OnlineData
from o2o_lightning.data.stream import count_chunks, next_boundary
from o2o_lightning.errors import UserError
from o2o_lightning.methods.cql import CQL
from o2o_lightning.methods.iql import IQL
from o2o_lightning.methods.o2 import ppo, sac, td3
from o2o_lightning.objectives.diagnostics import bellman_residual, relative_change, relative_drift
from o2o_lightning.phases.align import Align
from o2o_lightning.phases.offline import Offline
from o2o_lightning.phases.online import Online
from o2o_lightning.phases.reevaluate import Reevaluate

QUICK = Convergence(every=4, window=2, tolerance=1e9, patience=2, least=24)


def settles_at(curve: Callable[[int], float], rule: Convergence, until: int = 500_000) -> int | None:
    """The update at which a curve of the update count is called settled."""
    watch = ConvergenceWatch(rule, stops=True)
    for updates in range(rule.every, until + 1, rule.every):
        watch._judge(updates, {"q": curve(updates)}, ("q",))
    return watch.settled_at


# ---- the rule ----------------------------------------------------------------------------------------------------


def test_change_compares_two_windows_in_units_of_the_later() -> None:
    assert relative_change([1.0, 3.0, 4.0, 6.0], 2, 0.1) == pytest.approx((5 - 2) / 5)
    assert relative_change([-1.0, -3.0, -4.0, -6.0], 2, 0.1) == pytest.approx((5 - 2) / 5)
    assert relative_change([0.01, 0.02], 1, 0.1) == pytest.approx(0.1)
    assert relative_change([9.0, 1.0, 1.0, 1.0, 1.0], 2, 0.1) == 0.0
    assert relative_change([1.0, 1.0, 1.0], 2, 0.1) == math.inf


def test_drift_and_residual_are_in_units_of_the_values() -> None:
    value, reference = torch.tensor([1.0, -3.0]), torch.tensor([2.0, -2.0])
    assert float(relative_drift(value, reference)) == pytest.approx(0.5)
    assert float(bellman_residual(value, torch.tensor([1.0, -1.0]))) == pytest.approx(math.sqrt(2) / 2)


def test_a_critic_that_follows_its_target_network_settles_within_a_fifth_of_the_papers_steps() -> None:
    # targets that trail by the rate 0.005 at γ = 0.99 approach the fixed point as 1 − exp(−t / 20,000)
    approach = lambda updates: 350.0 * -math.expm1(-updates * 0.005 * 0.01)  # noqa: E731
    end = settles_at(approach, Convergence())
    assert end is not None and 60_000 < end <= 100_000
    assert approach(end) > 0.95 * 350.0
    assert settles_at(lambda updates: 1e-6 * approach(updates), Convergence()) == end  # whatever the rewards' unit


def test_a_curve_that_keeps_growing_never_settles() -> None:
    assert settles_at(lambda updates: updates**0.5, Convergence(), 100_000) is None


def test_nothing_settles_before_the_least_number_of_updates_or_without_patience() -> None:
    assert settles_at(lambda _: 1.0, Convergence(least=30_000)) == 30_000
    # ten measurements make two windows; the third comparison after the step at 10,000 that sees no change is patient
    assert settles_at(lambda updates: float(updates > 10_000), Convergence()) == 22_000


def test_a_method_that_names_no_curve_never_settles() -> None:
    watch = ConvergenceWatch(Convergence(least=0, patience=1), stops=True)
    for updates in range(1000, 20_000, 1000):
        watch._judge(updates, {})
    assert watch.settled_at is None


def test_one_restless_curve_is_enough_to_go_on() -> None:
    watch = ConvergenceWatch(Convergence(), stops=True)
    for updates in range(1000, 50_001, 1000):
        watch._judge(updates, {"share": 0.5, "drift": updates / 1e5})
    assert watch.settled_at is None


def test_a_curve_that_never_rests_decides_nothing() -> None:
    watch = ConvergenceWatch(Convergence(), stops=True)
    for updates in range(1000, 50_001, 1000):
        watch._judge(updates, {"share": 0.5, "drift": updates / 1e5}, restless=("drift",))
    assert watch.settled_at == 12_000 and watch.curves["drift"][-1] == 0.5


@pytest.mark.parametrize("wrong", [{"window": 0}, {"patience": 0}, {"every": 0}, {"held_out": 0.0}, {"held_out": 1.0}])
def test_a_rule_that_cannot_be_kept_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=rf"--model.convergence.{next(iter(wrong))}"):
        Convergence(**wrong)  # type: ignore[arg-type]


# ---- chunks ------------------------------------------------------------------------------------------------------


@given(st.integers(0, 90), st.integers(1, 90), st.integers(1, 20), st.integers(0, 15), st.integers(0, 15))
def test_chunks_end_at_every_cadence_and_are_counted(start: int, total: int, chunk: int, one: int, two: int) -> None:
    clock, chunks = start, 0
    while clock < total:
        following = clock + min(chunk, next_boundary(clock, total, one, two) - clock)
        assert all(every == 0 or clock // every == (following - 1) // every for every in (one, two))
        clock, chunks = following, chunks + 1
    assert count_chunks(total, chunk, one, two, start=start) == max(chunks, 1)


# ---- the phases --------------------------------------------------------------------------------------------------


def data(pendulum: str, **options: object) -> OfflineData:
    return OfflineData(dataset=pendulum, batch_size=32, eval_episodes=1, **options)  # type: ignore[arg-type]


def reevaluate(fit: Fit, chain: dict[str, Run], pendulum: str, steps: int = 60, chunk: int = 16, **rule: object) -> Run:
    start = str(chain["offline"].checkpoint)
    phase = lambda: Reevaluate(td3.Reevaluate(hidden=HIDDEN), start, **rule)  # type: ignore[arg-type] # noqa: E731
    return fit(phase, lambda: data(pendulum, chunk=chunk), steps)


def test_a_phase_that_may_stop_ends_at_its_plateau_whatever_the_chunk(fit: Fit, chain, pendulum) -> None:
    runs = [reevaluate(fit, chain, pendulum, chunk=chunk, stop="converged", convergence=QUICK) for chunk in (1, 16)]
    assert [run.module.updates for run in runs] == [24, 24]
    assert runs[0].module.facts()["stopped"] == "converged at 24 of 60"
    assert "converged at 24 of 60 updates: q " in runs[0].module.conclusion()
    assert [key for key, value in runs[0].end().items() if not torch.equal(value, runs[1].end()[key])] == []
    assert runs[0].metrics() == runs[1].metrics()


def test_a_phase_that_may_stop_ends_after_the_most_updates_that_the_rule_allows(fit: Fit, chain, pendulum) -> None:
    rule = Convergence(every=4, window=2, tolerance=0.0, patience=2, least=24, most=32)
    run = reevaluate(fit, chain, pendulum, stop="converged", convergence=rule)
    assert run.module.updates == 32
    assert run.module.facts()["stopped"] == "after 32 of 60"
    assert "not converged after 32 updates" in run.module.conclusion()
    assert reevaluate(fit, chain, pendulum, convergence=rule).module.updates == 60


def test_by_default_a_phase_makes_its_steps_and_measuring_does_not_change_them(fit: Fit, chain, pendulum) -> None:
    measured = reevaluate(fit, chain, pendulum, 40, convergence=QUICK)
    plain = reevaluate(fit, chain, pendulum, 40)
    assert measured.module.updates == plain.module.updates == 40
    assert measured.module.facts()["stopped"] == "after 40 of 40"
    assert measured.module.facts()["convergence"]["settled_at"] == 24
    assert [key for key, value in plain.end().items() if not torch.equal(value, measured.end()[key])] == []


def test_held_out_episodes_are_not_learned_from_when_they_decide(fit: Fit, chain, pendulum) -> None:
    seen: dict[str, set[int]] = {}
    for stop in ("steps", "converged"):
        datamodule = data(pendulum)
        method = td3.Reevaluate(hidden=HIDDEN)
        phase = Reevaluate(method, str(chain["offline"].checkpoint), stop=stop, convergence=QUICK)  # type: ignore[arg-type]
        drawn: list[int] = []

        def record(data_module: OfflineData, drawn: list[int] = drawn) -> None:
            assert data_module.store is not None
            sample = data_module.store.sample_rows
            data_module.store.sample_rows = lambda *a: (r := sample(*a), drawn.extend(r.flatten().tolist()))[0]  # type: ignore[method-assign]

        datamodule.setup("fit")
        record(datamodule)
        fit(phase, datamodule, 24)
        seen[stop] = set(drawn)
        assert datamodule.store is not None
        held = set(datamodule.store.hold_out(QUICK.held_out, learn=True).tolist())
        assert held and (held.isdisjoint(seen[stop]) if stop == "converged" else held & seen[stop])


def test_alignment_measures_anchors_drift_and_distance(fit: Fit, chain, pendulum) -> None:
    run = fit(
        lambda: Align(td3.Align(), str(chain["reevaluate"].checkpoint), convergence=QUICK), lambda: data(pendulum), 8
    )
    curves = run.module.watch.curves
    assert set(curves) == {"anchor_share", "perturbed_share", "anchor_drift", "actor_distance"}
    for share, perturbed in zip(curves["anchor_share"], curves["perturbed_share"], strict=True):
        assert 0.0 <= share <= perturbed <= 1.0
    assert min(curves["anchor_drift"] + curves["actor_distance"]) > 0.0
    batch = run.module._measured
    anchor, actor = run.module.method.offline_actor, run.module.method.actor
    with torch.no_grad():
        moved = (anchor.mode(batch["observation"]) - actor.mode(batch["observation"])).norm(dim=-1).mean()
    assert curves["actor_distance"][-1] == pytest.approx(float(moved), rel=1e-5)  # one action dimension


def align(fit: Fit, chain: dict[str, Run], pendulum: str, steps: int, **rule: object) -> Run:
    method = {name: rule.pop(name) for name in ("actor_after", "restart_every") if name in rule}
    start = str(chain["reevaluate"].checkpoint)
    return fit(lambda: Align(td3.Align(**method), start, **rule), lambda: data(pendulum), steps)  # type: ignore[arg-type]


def test_an_alignment_with_a_goal_ends_where_a_window_has_the_share(fit: Fit, chain, pendulum) -> None:
    whole = align(fit, chain, pendulum, 40, convergence=Convergence(every=4, window=20)).module.watch
    shares = whole.curves["perturbed_share"]
    means = [(one + other) / 2 for one, other in pairwise(shares)]
    goal = sorted(means)[len(means) // 2]  # reached, and not at once
    first = next(i for i, mean in enumerate(means) if mean >= goal) + 2
    rule = Convergence(every=4, window=2, share=goal)
    run = align(fit, chain, pendulum, 40, stop="aligned", convergence=rule)
    assert run.module.updates == 4 * first
    assert run.module.facts()["stopped"] == f"aligned at {4 * first} of 40"
    assert run.module.aligned
    assert read_handover(run.checkpoint).aligned


def test_a_critic_that_is_not_aligned_is_not_let_loose_on_the_policy(fit: Fit, chain, pendulum) -> None:
    run = align(fit, chain, pendulum, 8, stop="aligned", convergence=Convergence(every=4, window=2, share=0.999))
    assert "align: not aligned after 8 updates: " in run.module.conclusion()
    online = lambda: Online(td3.Online(), str(run.checkpoint))  # noqa: E731
    steps = lambda: OnlineData(dataset=pendulum, env_steps=4, eval_episodes=1)  # noqa: E731
    with pytest.raises(UserError, match="its critic is not aligned, and is not let loose on the policy"):
        fit(online, steps)
    assert read_handover(chain["align"].checkpoint).aligned  # which was not asked for


def test_an_alignment_that_fell_short_goes_on_and_only_for_longer(
    pendulum: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    argv = [
        "fit", "--phase", "all", "stop=aligned", "steps.offline=2", "steps.reevaluate=2", "steps.align=2",
        "steps.env=4", "--model.hidden=[8,8]", "--model.convergence.share=0.999", "--data.dataset", pendulum,
        "--data.batch_size=8", "--data.eval_episodes=1",
    ]  # fmt: skip
    assert main([*argv, "best_of=[align]", "--run_dir", str(run)]) == 2
    assert "with stop=aligned it is the last checkpoint that is aligned" in capsys.readouterr().err
    assert not run.exists()
    assert main([*argv, "--run_dir", str(run)]) == 2
    assert "`o2o resume RUN_DIR --trainer.max_steps N` lengthens the alignment" in capsys.readouterr().err
    for more, steps in ([], 2), (["--trainer.max_steps", "5"], 5):
        assert main(["resume", str(run), *more]) == 2
        assert "its critic is not aligned" in capsys.readouterr().err
        assert json.loads((run / "align/summary.json").read_text())["stopped"] == f"after {steps} of {steps}"


def test_the_most_updates_are_of_a_plateau_and_not_of_a_goal(fit: Fit, chain, pendulum) -> None:
    rule = Convergence(every=4, window=2, share=0.999, most=8)
    run = align(fit, chain, pendulum, 16, stop="aligned", convergence=rule)
    assert run.module.updates == 16
    assert align(fit, chain, pendulum, 16, stop="converged", convergence=rule).module.updates == 8
    short = align(fit, chain, pendulum, 8, stop="aligned", convergence=rule).module.conclusion()
    assert "not aligned after 8 updates" in short and "changed by" not in short


def test_a_re_evaluation_has_no_such_goal_and_ends_at_its_plateau(fit: Fit, chain, pendulum) -> None:
    run = reevaluate(fit, chain, pendulum, stop="aligned", convergence=QUICK)
    assert run.module.facts()["stopped"] == "converged at 24 of 60"


def test_the_actor_waits_for_its_critic_and_hunts_anew(fit: Fit, chain, pendulum) -> None:
    waits = align(fit, chain, pendulum, 6, actor_after=6).end()
    moved = align(fit, chain, pendulum, 7, actor_after=6).end()
    again = align(fit, chain, pendulum, 9, restart_every=8).end()
    anew = align(fit, chain, pendulum, 9, actor_after=8).end()
    actor, offline = (part(waits, f"method.{name}") for name in ("actor", "offline_actor"))
    assert same(actor, offline)
    assert not same(part(waits, "method.critic"), part(waits, "method.target_critic"))
    assert not same(part(moved, "method.actor"), offline)
    far = lambda state: max(float((v - offline[k]).abs().max()) for k, v in part(state, "method.actor").items())  # noqa: E731
    assert 0.0 < far(again) < 2e-4 > far(anew)  # the one update since, at a rate of 1e-4
    assert far(align(fit, chain, pendulum, 9).end()) > 4e-4


def test_every_method_measures_the_same_twice_and_draws_from_no_stream(fit: Fit, pendulum) -> None:
    start = {"sac": fit(lambda: Offline(CQL(hidden=HIDDEN, critic_hidden=HIDDEN)), lambda: data(pendulum), 4)}
    start["ppo"] = fit(lambda: Offline(IQL(hidden=HIDDEN)), lambda: data(pendulum), 4)
    paths = {name: str(run.checkpoint) for name, run in start.items()}
    phases = [lambda: Reevaluate(sac.Reevaluate(hidden=HIDDEN), paths["sac"], convergence=QUICK)]
    phases.append(lambda: Align(sac.Align(), str(runs[0].checkpoint), convergence=QUICK))
    phases.append(lambda: Reevaluate(ppo.Reevaluate(hidden=HIDDEN), paths["ppo"], convergence=QUICK))
    runs: list[Run] = []
    for phase in phases:
        runs.append(fit(phase, lambda: data(pendulum), 8))
    names = [
        {"q", "residual"},
        {"anchor_share", "perturbed_share", "anchor_drift", "actor_distance"},
        {"value", "residual"},
    ]
    for run, expected in zip(runs, names, strict=True):
        streams = [torch.get_rng_state(), run.module.noise.generator.get_state(), run.module.data.rows.get_state()]
        found = run.module.measure()
        assert set(found) == expected and found == run.module.measure()
        assert all(math.isfinite(value) for value in found.values())
        after = [torch.get_rng_state(), run.module.noise.generator.get_state(), run.module.data.rows.get_state()]
        assert all(torch.equal(one, two) for one, two in zip(streams, after, strict=True))
    batch = runs[2].module._measured
    with torch.no_grad():
        method = runs[2].module.method
        values = method.value(batch["observation"]).tolist()
        behind = batch["tail_weight"] * method.value(method.tails)[batch["tail"].long()]  # where the time limit cut
    targets = (batch["return_to_go"] + behind).tolist()
    errors = [(value - target) ** 2 for value, target in zip(values, targets, strict=True)]
    size = sum(map(abs, values)) / len(values)
    assert found["value"] == pytest.approx(size, rel=1e-5)
    assert found["residual"] == pytest.approx(math.sqrt(sum(errors) / len(errors)) / size, rel=1e-5)


@pytest.mark.parametrize("phase, online", [
    ("reevaluate", "o2td3"), ("align", "o2td3"), ("reevaluate", "o2sac"), ("align", "o2sac"), ("reevaluate", "o2ppo"),
])  # fmt: skip
def test_one_key_decides_for_every_phase_that_can_converge(phase: str, online: str) -> None:
    stops = [compose(phase, split([f"online={online}", *token]))["model"]["init_args"]["stop"]
             for token in ([], ["stop=converged"])]  # fmt: skip
    assert stops == ["steps", "converged"]


def test_another_word_is_refused_in_one_line(o2o: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert o2o("fit", "--phase", "align", "--model.stop", "plateau", "--print_config") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "stop" in error and "converged" in error


CONVERGING = [
    "fit", "--phase", "reevaluate", "stop=converged", "checkpoint_every=10", "--trainer.max_steps", "90",
    "--model.hidden", "[16,16]", "--data.batch_size", "32", "--data.chunk", "8", "--data.eval_episodes", "1",
    "--model.convergence.every", "6", "--model.convergence.window", "2", "--model.convergence.tolerance", "1e9",
    "--model.convergence.least", "54", "--trainer.log_every_n_steps", "10",
]  # fmt: skip


@pytest.mark.parametrize("count", [31, 54])
def test_a_run_that_is_killed_before_its_plateau_ends_at_the_same_one(count, chain, pendulum, tmp_path: Path) -> None:
    killing.import_everything()
    log, line = tmp_path / "log", [*CONVERGING, "--data.dataset", pendulum]
    line += ["--model.init_from", str(chain["offline"].checkpoint), "--run_dir"]
    assert killing.run([*line, str(tmp_path / "whole")], log) == 0, log.read_text()
    assert killing.run([*line, str(tmp_path / "killed")], log, killing.die_at("update", count)) == -9, log.read_text()
    assert killing.run(["resume", str(tmp_path / "killed")], log) == 0, log.read_text()
    assert killing.differences(tmp_path / "whole", tmp_path / "killed", ["reevaluate"]) == []
    summary = json.loads((tmp_path / "killed" / "reevaluate" / "summary.json").read_text())
    assert summary["stopped"] == "converged at 54 of 90" and summary["steps"] == 54
    assert "reevaluate: converged at 54 of 90 updates: q " in log.read_text()
