"""Lightning's own callbacks beside ours: they are added, see every logged name, and cost neither checkpoint nor bar."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import HIDDEN, Fit, Run
from lightning.pytorch.callbacks import Callback, EarlyStopping, LearningRateMonitor, ModelCheckpoint

from o2o_lightning.callbacks.sections import sectioned
from o2o_lightning.checkpoint.handover import read_handover
from o2o_lightning.cli.command import split
from o2o_lightning.cli.plan import plan
from o2o_lightning.data.module import OfflineData
from o2o_lightning.data.online import OnlineData
from o2o_lightning.methods.o2 import td3
from o2o_lightning.methods.td3_bc import TD3BC
from o2o_lightning.phases.offline import Offline
from o2o_lightning.phases.online import Online

O2O = Callable[..., int]
SIZES = (
    "steps.offline=40", "steps.reevaluate=20", "steps.align=20", "steps.env=40", "checkpoint_every=20",
    "--data.eval_every_updates", "10", "--data.eval_every", "20", "--data.eval_episodes", "1", "--data.chunk", "4",
    "--data.batch_size", "8", "--trainer.log_every_n_steps", "5", "--model.hidden", "[8,8]",
    "--trainer.accelerator", "cpu",
)  # fmt: skip
PHASES = ("offline", "reevaluate", "align", "online")


def offline_run(fit: Fit, pendulum: str, *callbacks: Callback, steps: int = 40, **options: Any) -> Run:
    options = {"dataset": pendulum, "batch_size": 8, "chunk": 4, "eval_every_updates": 10, "eval_episodes": 1} | options
    return fit(lambda: Offline(TD3BC(hidden=HIDDEN)), lambda: OfflineData(**options), steps, callbacks=callbacks)


def rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "metrics.csv").open()))


# ---- they are added --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "typed",
    [
        ["--trainer.callbacks", "LearningRateMonitor"],
        ["--trainer.callbacks", "LearningRateMonitor", "--trainer.callbacks", "DeviceStatsMonitor"],
        ["--trainer.callbacks+=LearningRateMonitor"],
        ["--trainer.callbacks", "[{class_path: LearningRateMonitor}]"],
        ["--trainer.callbacks=[]"],
        ["--trainer.callbacks", "null"],
    ],
)
def test_what_is_typed_of_callbacks_is_added_to_our_own(typed: list[str], pendulum: str, tmp_path: Path) -> None:
    options = ["--phase", "offline", "--data.dataset", pendulum, "--trainer.accelerator", "cpu", *typed]
    built = plan(split(options))[0][0].cli.build(tmp_path, "offline")
    names = [type(callback).__name__ for callback in built.trainer.callbacks]
    theirs = [word for word in ("LearningRateMonitor", "DeviceStatsMonitor") if word in " ".join(typed)]
    assert sorted(names) == sorted([*theirs, "RunDirectory", "PhaseProgress", "PhaseCheckpoint"])


@pytest.mark.parametrize("nothing", ["[]", "null"])
def test_who_types_no_callbacks_is_told_how_to_go_without_ours(nothing: str) -> None:
    notes = plan(split(["--phase", "offline", "--data.dataset", "a.hdf5", f"--trainer.callbacks={nothing}"]))[1]
    assert any("--trainer.enable_progress_bar false" in note for note in notes)


def test_a_file_that_version_0_1_wrote_does_not_bring_our_callbacks_twice(pendulum: str, tmp_path: Path) -> None:
    ours, place = "o2o_lightning.callbacks", "$RUN_DIR/$PHASE/checkpoints"
    callbacks = [
        {"class_path": f"{ours}.progress.PhaseProgress"},
        {"class_path": f"{ours}.checkpoint.PhaseCheckpoint", "init_args": {"dirpath": place, "every": 7}},
        {"class_path": "LearningRateMonitor"},
    ]
    file = tmp_path / "old.yaml"
    file.write_text(yaml.safe_dump({"trainer": {"callbacks": callbacks}}))
    options = ["--phase", "offline", "--data.dataset", pendulum, "--trainer.accelerator", "cpu", "--config", str(file)]
    built = plan(split(options))[0][0].cli.build(tmp_path, "offline")
    kinds = [type(callback).__name__ for callback in built.trainer.callbacks]
    assert sorted(kinds) == ["LearningRateMonitor", "PhaseCheckpoint", "PhaseProgress", "RunDirectory"]
    saves = built.trainer.checkpoint_callback
    assert (saves.every, Path(saves.dirpath).name) == (7, "checkpoints")


def test_a_pipeline_with_a_callback_runs_all_its_phases(
    o2o: O2O, pendulum: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stop = ["--trainer.callbacks", "EarlyStopping", "--trainer.callbacks.monitor", "score"]
    stop += ["--trainer.callbacks.stopping_threshold=-1e9", "--trainer.callbacks.mode=max"]
    argv = ["fit", "--phase", "all", "--data.dataset", pendulum, *SIZES, *stop, "--run_dir", tmp_path / "run"]
    argv += ["--data.warmup_steps", "10"]
    assert o2o(*argv) == 0
    found = {phase: json.loads((tmp_path / "run" / phase / "summary.json").read_text()) for phase in PHASES}
    # at their first evaluation each but the one that makes none, online the one before its first step
    assert [found[phase]["steps"] for phase in PHASES] == [10, 20, 10, 0]
    assert all((tmp_path / "run" / phase / "checkpoints/last.ckpt").exists() for phase in PHASES)
    said = capsys.readouterr().err
    assert "reevaluate: EarlyStopping is left out, for this phase has no 'score'" in said
    assert "offline: EarlyStopping: Stopping threshold reached" in said


def test_a_pipeline_goes_on_where_a_later_phase_has_not_the_name(
    o2o: O2O, pendulum: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = ["--trainer.callbacks", "ModelCheckpoint", "--trainer.callbacks.monitor", "loss/critic"]
    argv = ["fit", "--phase", "all", "--data.dataset", pendulum, *SIZES, *saved, "--data.warmup_steps", "10"]
    assert o2o(*argv, "--run_dir", tmp_path / "run") == 0
    kept = [phase for phase in PHASES if [*(tmp_path / "run" / phase / "checkpoints").glob("epoch=0*.ckpt")]]
    assert kept == ["offline", "reevaluate", "online"]
    assert "align: ModelCheckpoint is left out, for this phase has no 'loss/critic'" in capsys.readouterr().err


# ---- each of them ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["score", "return_mean", "critic_loss", "loss/critic", "eval/score", "critic/q"])
def test_early_stopping_counts_the_values_of_any_logged_name(fit: Fit, pendulum: str, name: str) -> None:
    # nothing is ever better by as much, so that the first value is the best and two more end it
    run = offline_run(fit, pendulum, EarlyStopping(name, min_delta=1e9, patience=2, mode="max"))
    assert run.module.updates == (
        10 if name in ("critic_loss", "loss/critic", "critic/q") else 30
    )  # of rows, the third chunk


def test_early_stopping_hears_of_the_phases_that_are_measured(fit: Fit, chain: dict[str, Run], pendulum: str) -> None:
    from o2o_lightning.callbacks.convergence import Convergence
    from o2o_lightning.phases.reevaluate import Reevaluate

    phase = lambda: Reevaluate(  # noqa: E731
        td3.Reevaluate(hidden=HIDDEN), str(chain["offline"].checkpoint), convergence=Convergence(every=6)
    )
    stop = EarlyStopping("measured_q", min_delta=1e9, patience=1)
    run = fit(phase, lambda: OfflineData(dataset=pendulum, batch_size=8, chunk=4), 24, callbacks=[stop])
    assert run.module.updates == 12


def test_a_callback_of_the_online_phase_counts_its_evaluations(fit: Fit, chain: dict[str, Run], pendulum: str) -> None:
    data = lambda: OnlineData(  # noqa: E731
        pendulum, env_steps=40, batch_size=8, warmup_steps=5, eval_every=10, eval_episodes=1
    )
    stop = EarlyStopping("eval/return_mean", min_delta=1e9, patience=2)
    run = fit(lambda: Online(td3.Online(), str(chain["align"].checkpoint)), data, callbacks=[stop])
    assert run.module.env_steps == 20  # of the policy that came, after 10 steps, after 20


@pytest.mark.parametrize("name", ["scoer", "val_loss", "multiplier"])
def test_a_name_that_is_never_logged_is_refused_with_those_that_are(
    o2o: O2O, pendulum: str, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stop = ["--trainer.callbacks", "EarlyStopping", "--trainer.callbacks.monitor", name]
    argv = ["fit", "--phase", "offline", "--data.dataset", pendulum, *SIZES, "--trainer.max_steps", "400"]
    assert o2o(*argv, *stop, "--run_dir", tmp_path) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"EarlyStopping: phase 'offline' has no '{name}' to monitor. It has " in line
    assert " critic_loss," in line and " loss/critic," in line and " score" in line
    assert not (tmp_path / "offline/summary.json").exists()  # after two rows, not at the end


def test_model_checkpoint_keeps_the_best_by_a_score_of_its_own_moment(fit: Fit, pendulum: str, tmp_path: Path) -> None:
    saved = ModelCheckpoint(tmp_path, "{step}", monitor="return_mean", mode="max", save_top_k=-1)
    run = offline_run(fit, pendulum, saved)
    curve = {clock: value for clock, value, _ in run.module.curve}
    kept = {int(Path(path).stem.partition("=")[2]): float(value) for path, value in saved.best_k_models.items()}
    assert kept == pytest.approx(curve) and [*kept] == [10, 20, 30, 40]
    assert read_handover(saved.best_model_path).phase == "offline"  # one that a phase can start from


def test_model_checkpoint_by_steps_saves_at_each_multiple(fit: Fit, pendulum: str, tmp_path: Path) -> None:
    offline_run(fit, pendulum, ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=8, save_top_k=-1))
    assert sorted(int(path.stem.partition("=")[2]) for path in tmp_path.iterdir()) == [8, 16, 24, 32, 40]


def test_learning_rates_are_logged_with_the_rows_on_the_phases_clock(o2o: O2O, pendulum: str, tmp_path: Path) -> None:
    monitor = ["--trainer.callbacks", "LearningRateMonitor"]
    argv = ["fit", "--phase", "offline", "--data.dataset", pendulum, *SIZES, *monitor, "--run_dir", tmp_path]
    assert o2o(*argv, "--trainer.max_steps", "20") == 0
    rates = [(int(row["step"]), row["lr-Adam/actor"]) for row in rows(tmp_path / "offline") if row["lr-Adam/actor"]]
    assert [step for step, _ in rates] == [0, 8, 10, 18]  # the start, and the ends of chunks that have had a row
    assert {float(rate) for _, rate in rates} == {3e-4}


@pytest.mark.parametrize("profiler", ["simple", "advanced"])
def test_a_profiler_leaves_its_report_in_the_phases_folder(
    o2o: O2O, pendulum: str, tmp_path: Path, profiler: str, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["fit", "--phase", "offline", "--data.dataset", pendulum, *SIZES, "--trainer.profiler", profiler]
    assert o2o(*argv, "--trainer.max_steps", "10", "--run_dir", tmp_path) == 0
    report = tmp_path / "offline/fit-profile.txt"
    assert "run_training_batch" in report.read_text() and str(report) in capsys.readouterr().err


def test_callback_metrics_have_the_last_value_of_each_name_twice(fit: Fit, pendulum: str) -> None:
    run = offline_run(fit, pendulum)
    last: dict[str, float] = {}
    for row in rows(run.folder):
        last |= {name: float(value) for name, value in row.items() if value and name not in ("step", "updates")}
    last["score"] = run.module.curve[-1][1]  # Pendulum has no reference score
    found = run.trainer.callback_metrics
    assert {*last} | {sectioned(name) for name in last} == {*found}
    assert {name: float(found[name]) for name in last} == pytest.approx(last)
    assert {name: float(found[sectioned(name)]) for name in last} == pytest.approx(last)


def test_monitors_change_no_bit(fit: Fit, pendulum: str, tmp_path: Path) -> None:
    alone = offline_run(fit, pendulum)
    watchers = [EarlyStopping("critic_loss", patience=1000), LearningRateMonitor()]
    watched = offline_run(fit, pendulum, *watchers, ModelCheckpoint(tmp_path, every_n_train_steps=8))
    before, after = alone.end(), watched.end()
    assert before.keys() == after.keys() and all(before[name].equal(after[name]) for name in before)


# ---- stop and go on --------------------------------------------------------------------------------------------------


def kill_at_third_evaluation_and_go_on(
    o2o: O2O, monkeypatch: pytest.MonkeyPatch, argv: list[Any], run_dir: Path
) -> None:
    evaluate, calls = OfflineData.evaluate, []

    def killed(self: OfflineData, act: Any) -> Any:
        calls.append(None)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return evaluate(self, act)

    with monkeypatch.context() as patched:
        patched.setattr(OfflineData, "evaluate", killed)
        assert o2o(*argv, "--run_dir", run_dir) == 130
    assert o2o("resume", run_dir) == 0


def test_early_stopping_goes_on_counting_where_a_run_was_killed(
    o2o: O2O, pendulum: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = ["--trainer.callbacks", "EarlyStopping", "--trainer.callbacks.monitor", "score"]
    stop += ["--trainer.callbacks.min_delta", "1e9", "--trainer.callbacks.mode", "max"]
    argv = ["fit", "--phase", "offline", "--data.dataset", pendulum, *SIZES, "--trainer.max_steps", "400", *stop]
    assert o2o(*argv, "--run_dir", tmp_path / "whole") == 0
    whole = json.loads((tmp_path / "whole/offline/summary.json").read_text())
    assert whole["steps"] == 40  # after the best one at 10, three more
    kill_at_third_evaluation_and_go_on(o2o, monkeypatch, argv, tmp_path / "run")
    assert rows(tmp_path / "run/offline") == rows(tmp_path / "whole/offline")
    assert json.loads((tmp_path / "run/offline/summary.json").read_text())["steps"] == 40


@pytest.mark.parametrize("every", [20, 24])  # updates between checkpoints: a row is due just after one, or not
def test_learning_rates_have_the_rows_of_a_run_that_was_not_killed(
    o2o: O2O, pendulum: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    argv = ["fit", "--phase", "offline", "--data.dataset", pendulum, *SIZES, "--trainer.max_steps", "40"]
    argv += ["--trainer.callbacks", "LearningRateMonitor", f"checkpoint_every={every}"]
    assert o2o(*argv, "--run_dir", tmp_path / "whole") == 0
    kill_at_third_evaluation_and_go_on(o2o, monkeypatch, argv, tmp_path / "run")
    assert rows(tmp_path / "run/offline") == rows(tmp_path / "whole/offline")
