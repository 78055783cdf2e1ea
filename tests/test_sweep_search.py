"""`o2o sweep hydra/sweeper=optuna`: what jobs are worth goes to Optuna's sweeper, which chooses the next ones by it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_report import write_run
from test_sweep import Jobs

from o2o_lightning.cli.main import main

FIT = ["--phase", "online", "online=o2td3", "--model.actor_lr", "1e-4"]
SEARCH = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=5"]
SPACE = ["--model.threshold.end=interval(0.01,0.09)", "--data.utd=1,5"]


class Worth(Jobs):
    """Jobs that end with a score of their threshold: 50 at 0.05, and less on both sides."""

    def popen(self, command: list[str], **options: Any) -> Any:
        process = super().popen(command, **options)
        folder = Path(command[-1])
        if process.wait() == 0:
            final = score(options_of(command)["model.threshold.end"])
            write_run(folder, final=final, lowest_early=final - 7, offline=50.0)
        return process


def options_of(command: list[str]) -> dict[str, float]:
    typed = [word[2:].split("=") for word in command if word.startswith(("--model.threshold", "--data.utd"))]
    return {name: float(value) for name, value in typed}


def score(threshold: float) -> float:
    return 50 - 1e4 * (threshold - 0.05) ** 2


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> Jobs:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    return Worth(monkeypatch)


def optunas_own(trials: int, direction: str, value: Any) -> list[dict[str, float]]:
    """What Optuna itself chooses, asked without Hydra."""
    import optuna

    study, chosen = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0), direction=direction), []
    for _ in range(trials):
        trial = study.ask()
        found = {
            "model.threshold.end": trial.suggest_float("++model.threshold.end", 0.01, 0.09),
            "data.utd": float(trial.suggest_categorical("++data.utd", [1, 5])),
        }
        study.tell(trial, value(found["model.threshold.end"]))
        chosen.append(found)
    return chosen


@pytest.mark.parametrize(
    "metric, trials, direction, value",
    [
        ([], 12, "maximize", score),  # Optuna's first ten are drawn, whatever they were worth
        (["metric=drop"], 3, "minimize", lambda threshold: 50 - (score(threshold) - 7)),
    ],
)
def test_optuna_is_told_what_each_job_was_worth(
    metric: list[str],
    trials: int,
    direction: str,
    value: Any,
    jobs: Jobs,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    argv = ["sweep", *FIT, *SPACE, *SEARCH, f"hydra.sweeper.n_trials={trials}", *metric]
    assert main([*argv, "--run_dir", str(tmp_path / "s")]) == 0
    expected = optunas_own(trials, direction, value)
    assert [options_of(command) for command in jobs.commands] == expected
    best = (max if direction == "maximize" else min)(expected, key=lambda found: value(found["model.threshold.end"]))
    folder = f"model.threshold.end={best['model.threshold.end']},data.utd={best['data.utd']:.0f}"
    assert f"best of {trials}: {tmp_path}/s/{folder}, " in capsys.readouterr().err


def test_the_same_search_again_goes_on_with_what_was_left(jobs: Jobs, tmp_path: Path) -> None:
    argv = ["sweep", *FIT, *SPACE, *SEARCH, "--run_dir", str(tmp_path / "s")]
    assert main([*argv, "hydra.sweeper.n_trials=3"]) == 0
    assert main(argv) == 0
    assert [options_of(command) for command in jobs.commands] == optunas_own(5, "maximize", score)


def test_a_search_goes_on_beyond_a_job_that_fails_and_says_so(
    jobs: Jobs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs.fail = {"data.utd=5": 1}
    assert main(["sweep", *FIT, *SPACE, *SEARCH, "--run_dir", str(tmp_path / "s")]) == 1
    error = capsys.readouterr().err
    failed = sum("--data.utd=5" in command for command in jobs.commands)
    assert 0 < failed < 5 and f"best of {5 - failed}: " in error
    assert f"o2o: {failed} of 5 jobs failed" in error and "the gripper is stuck" in error


@pytest.mark.parametrize(
    "argv, said",
    [
        ([*SPACE, *SEARCH, "metric=joy"], "metric=joy: choose one of offline, "),
        (["--data.utd=1,5", "metric=area"], "metric=area: a grid chooses by none"),
        (["--data.utd=1", *SEARCH], "it chooses no value"),
        ([*SPACE, *SEARCH, "hydra.sweeper.params.seed_everything=choice(1,2)"], "so that jobs have names"),
        (["--data.utd=interval(-5,5)", *SEARCH], "--data.utd"),
        (SPACE, "a grid takes no interval"),
    ],
)
def test_a_search_that_cannot_be_is_refused_before_its_first_job(
    argv: list[str], said: str, jobs: Jobs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", *FIT, *argv, "--run_dir", str(tmp_path / "s")]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("o2o: ") == 1
    assert jobs.commands == [] and not (tmp_path / "s").exists()


def test_a_missing_sweeper_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("o2o_lightning.cli.sweep.find_spec", lambda _: None)
    assert main(["sweep", *FIT, *SPACE, *SEARCH, "--run_dir", str(tmp_path / "s")]) == 2
    assert "pip install 'o2o-lightning[optuna]'" in capsys.readouterr().err


def test_a_real_job_is_worth_what_its_report_says(pendulum: str, tmp_path: Path) -> None:
    from o2o_lightning.cli.search import worth

    line = [
        "fit", "--phase", "offline", "--data.dataset", pendulum, "--trainer.max_steps", "4", "--model.hidden", "[8]",
        "--data.eval_episodes", "1", "--data.eval_every_updates", "2", "--run_dir", str(tmp_path / "r"), "seeds=2",
        "--trainer.accelerator", "cpu",
    ]  # fmt: skip
    assert main(line) == 0
    curves = [json.loads((tmp_path / f"r/seed-{seed}/summary.json").read_text())["score"]["curve"] for seed in (0, 1)]
    assert worth(tmp_path / "r", "final") == pytest.approx(sum(curve[-1][1] for curve in curves) / 2)
    assert worth(tmp_path / "nowhere", "final") is None
