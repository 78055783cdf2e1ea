"""How long a run will take: rehearsed before a long one, told in its progress, and without a trace in its results."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import killing
import pytest

from o2o_lightning.callbacks.progress import PhaseProgress
from o2o_lightning.cli import estimate
from o2o_lightning.cli.estimate import Estimate, Work, _seconds

O2O = Callable[..., int]
SMALL = ("phases=[offline,align,online]", "steps.offline=40", "steps.align=40", "steps.env=40", "--data.warmup_steps=8",
         "--data.batch_size=8", "--data.eval_episodes=2", "--data.eval_every_updates=20", "--data.eval_every=20",
         "--data.env_kwargs={max_episode_steps: 8}", "--trainer.accelerator=cpu")  # fmt: skip


@pytest.fixture
def rehearsals(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """Every run is worth an estimate, and its rehearsal is a fork; those that were made."""
    killing.import_everything()
    made: list[list[str]] = []

    def run(line: list[str], **options: Any) -> None:
        made.append(line)
        log = tmp_path / "rehearsal.log"
        if killing.run(line[3:], log):
            raise subprocess.CalledProcessError(1, line, log.read_text())

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(estimate, "LONG", 1)
    return made


def test_an_estimate_is_steps_and_whole_episodes_at_their_pace() -> None:
    pace = {"phase": "online", "step": 0.01, "evaluation": 1e-4, "horizon": 500}
    # 2,000 steps of 10 ms, and 30 episodes of 500 steps of 0.1 ms
    assert _seconds([pace], Work(2000, 30), 2000) == pytest.approx(20.0 + 1.5)
    assert _seconds([pace], Work(2000, 30), 1000) == pytest.approx(10.75)  # the half of it
    # of two seeds: a step of either waits for both, and each is evaluated alone
    assert _seconds([pace, {**pace, "step": 0.012}], Work(2000, 30), 2000) == pytest.approx(24.0 + 3.0)
    assert _seconds([{**pace, "step": None}], Work(2000, 30), 2000) is None


def test_what_follows_a_phase_is_known_where_all_of_it_is() -> None:
    found = Estimate({"offline": 3600.0, "align": 60.0, "online": 30.0}, quick=90.0)
    assert [found.after(phase) for phase in found.phases] == [90.0, 30.0, 0]
    assert found.after("clone") is None
    assert found.line() == (
        "about 1 h 01 min on this machine: offline 1 h 00 min, align 1 min 00 s, online 0 min 30 s; "
        "with experiment=quick about 1 min 30 s"
    )
    unknown = Estimate({"offline": 60.0, "online": None})
    assert unknown.after("offline") is None and "online, of which a few steps can't tell" in (unknown.line() or "")
    assert Estimate({}).line() is None and Estimate({"online": None}).line() is None


@pytest.mark.parametrize(
    "choices", [("seeds=2",), ("online=o2ppo", "phases=[offline,reevaluate,online]", "steps.reevaluate=40")]
)
def test_a_long_run_says_before_it_starts_how_long_each_phase_takes(
    choices: tuple[str, ...], rehearsals: list[list[str]], pendulum: str, tmp_path: Path, o2o: O2O,
    capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    options = [option for option in SMALL if choices[0] != "online=o2ppo" or "warmup" not in option]
    assert o2o("fit", *options, *choices, f"--data.dataset={pendulum}", "--run_dir", tmp_path / "run") == 0
    said = capsys.readouterr().err
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())["commands"][0]
    assert [*plan["estimate"]] == plan["phases"] and all(seconds > 0 for seconds in plan["estimate"].values())
    line = next(line for line in said.splitlines() if line.startswith("about 0 min"))
    assert all(f"{phase} 0 min" in line for phase in plan["phases"])
    assert len(rehearsals) == 1 and "all phases 0:00:" in said  # while the first phases run


def test_a_rehearsal_leaves_no_trace_in_the_results(
    rehearsals: list[list[str]], pendulum: str, tmp_path: Path, o2o: O2O, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, long in (("told", 1), ("untold", 1000)):
        monkeypatch.setattr(estimate, "LONG", long)
        assert o2o("fit", *SMALL, f"--data.dataset={pendulum}", "--run_dir", tmp_path / name) == 0
    assert len(rehearsals) == 1
    for phase in ("offline", "align", "online"):
        told, untold = (tmp_path / name / phase / "metrics.csv" for name in ("told", "untold"))
        assert told.read_bytes() == untold.read_bytes()


def test_a_rehearsal_that_fails_or_is_not_wanted_costs_nothing(
    rehearsals: list[list[str]], pendulum: str, tmp_path: Path, o2o: O2O, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    def fails(*argv: Any, **options: Any) -> None:
        raise subprocess.TimeoutExpired("o2o", 300)

    one = ("fit", "--phase=offline", f"--data.dataset={pendulum}", "--trainer.max_steps=3", "--data.eval_episodes=1")
    assert o2o(*one, "--trainer.enable_progress_bar=false", "--run_dir", tmp_path / "quiet") == 0
    assert rehearsals == []
    monkeypatch.setattr(subprocess, "run", fails)
    assert o2o(*one, "--run_dir", tmp_path / "failed") == 0
    assert "on this machine" not in capsys.readouterr().err


def test_a_resumed_run_knows_what_follows(
    rehearsals: list[list[str]], pendulum: str, tmp_path: Path, o2o: O2O, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["fit", *SMALL, f"--data.dataset={pendulum}", "--checkpoint.every=10", "--run_dir", str(tmp_path / "run")]
    assert killing.run(argv, tmp_path / "log", killing.die_at("update", 50)) == -9
    told = json.loads((tmp_path / "run" / "plan.json").read_text())["commands"][0]["estimate"]
    seen: list[float | None] = []
    monkeypatch.setattr(PhaseProgress, "on_fit_end", lambda self, trainer, phase: seen.append(self.after))
    assert o2o("resume", tmp_path / "run") == 0
    assert seen[-2:] == [pytest.approx(told["online"]), 0]
