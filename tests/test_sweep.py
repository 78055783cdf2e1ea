"""`o2o sweep`: the jobs that Hydra makes of it, where they go, and what happens to each."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from o2o_lightning.cli import sweep
from o2o_lightning.cli.main import main

FIT = ["--phase", "online", "--model.actor_lr", "1e-4"]


class Jobs:
    """Stands for the processes: writes what `o2o fit` and `o2o resume` leave behind, and fails where it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.commands: list[list[str]] = []
        self.environments: list[dict[str, str]] = []
        self.fail: dict[str, int] = {}
        monkeypatch.setattr(sweep.subprocess, "Popen", self.popen)

    def popen(self, command: list[str], cwd: str, env: dict[str, str], stdout: Any, stderr: Any) -> Any:
        assert command[:3] == [sys.executable, "-m", "o2o_lightning.cli.main"] and cwd == os.getcwd()
        argv = command[3:]
        self.commands.append(argv)
        self.environments.append(env)
        folder = Path(argv[argv.index("--run_dir") + 1] if argv[0] == "fit" else argv[1])
        (folder / "online").mkdir(parents=True, exist_ok=True)
        code = next((code for name, code in self.fail.items() if name in folder.name), 0)
        if argv[0] == "fit":
            where = argv.index("--model.actor_lr")
            plan = {"phase": "online", "phases": ["online"], "overrides": argv[3:where], "cwd": cwd}
            plan["options"] = argv[where : argv.index("--run_dir")]
            (folder / "plan.json").write_text(json.dumps([plan]))
        if code == 0:
            summary = json.dumps({"score": {"final": 71.25}})
            (folder / "online/summary.json").write_text(summary)
            (folder / "summary.json").write_text(summary)
        else:
            stdout.write(b"o2o: environment Hopper-v5: the gripper is stuck.\n")
        return type("Process", (), {"wait": lambda _: code})()


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> Jobs:
    return Jobs(monkeypatch)


def test_every_combination_is_one_fit_in_a_folder_named_after_it(jobs, tmp_path, capsys):
    argv = ["sweep", "seed_everything=0,1", "online=o2td3,td3", "steps.env=70", *FIT, "--run_dir", str(tmp_path / "s")]
    assert main(argv) == 0
    names = [f"seed_everything={seed},online={method}" for seed in (0, 1) for method in ("o2td3", "td3")]
    assert [Path(command[-1]).name for command in jobs.commands] == names
    first = jobs.commands[0]
    assert first[:3] == ["fit", "--phase", "online"]
    assert first[3:6] == ["seed_everything=0", "online=o2td3", "steps.env=70"]
    assert first[6:8] == ["--model.actor_lr", "1e-4"]
    assert f"{names[3]}: finished, final 71.2" in capsys.readouterr().err


@pytest.mark.parametrize("typed", [
    ["--model.threshold.end", "0.01,0.04", "--online.data.utd=1,2"],
    ["model.threshold.end=0.01,0.04", "online.data.utd=1,2"],
])  # fmt: skip
def test_typed_options_are_swept_in_either_form(typed, jobs, tmp_path):
    place, options = ["--run_dir", str(tmp_path / "s")], ["--model.hidden", "[8,8]"]
    assert main(["sweep", "online=o2td3", *typed, *FIT, *options, *place]) == 0
    names = [f"model.threshold.end={end},online.data.utd={utd}" for end in ("0.01", "0.04") for utd in (1, 2)]
    assert [Path(command[-1]).name for command in jobs.commands] == names
    assert jobs.commands[1][3:-2] == ["online=o2td3", "--model.actor_lr", "1e-4", *options,
                                      "--model.threshold.end=0.01", "--online.data.utd=2"]  # fmt: skip
    jobs.commands = []
    assert main(["sweep", "online=o2td3", *typed, *FIT, *options, *place]) == 0
    assert jobs.commands == []  # all are finished, and their plans are these


def test_an_option_in_hydras_form_means_the_typed_one(capsys):
    fit = ["fit", "--phase", "online", "--print_config"]
    assert main([*fit, "model.threshold.end=0.5", "online.model.critic_lr=1e-3"]) == 0
    hydra = capsys.readouterr().out
    assert main([*fit, "--model.threshold.end", "0.5", "--online.model.critic_lr", "1e-3"]) == 0
    assert hydra == capsys.readouterr().out and "end: 0.5" in hydra
    assert main([*fit, "data.collect=5"]) == 2
    assert "Write `--data.collect VALUE`" in capsys.readouterr().err


def test_values_may_be_any_of_hydras_and_the_order_of_words_is_free(jobs, tmp_path):
    argv = ["--run_dir", str(tmp_path / "s"), "seed_everything=range(3)", "dataset=glob(hopper-m*)", "--", "fit", *FIT]
    assert main(["sweep", *argv]) == 0
    datasets = ("hopper-medium-expert-v2", "hopper-medium-replay-v2", "hopper-medium-v2")
    expected = {f"seed_everything={seed},dataset={name}" for seed in range(3) for name in datasets}
    assert {Path(command[-1]).name for command in jobs.commands} == expected


def test_what_is_finished_is_skipped_what_has_failed_goes_on_and_failures_are_listed(jobs, tmp_path, capsys):
    argv = ["sweep", "seed_everything=0,1,2", *FIT, "--run_dir", str(tmp_path / "s")]
    jobs.fail = {"=1": 1}
    assert main(argv) == 1
    said = capsys.readouterr().err
    assert "seed_everything=1: environment Hopper-v5: the gripper is stuck." in said
    assert "1 of 3 jobs failed" in said and "seed_everything=2: finished" in said
    jobs.fail, jobs.commands = {}, []
    assert main(argv) == 0
    assert jobs.commands == [["resume", str(tmp_path / "s/seed_everything=1")]]
    assert "seed_everything=0: finished before" in capsys.readouterr().err


def test_a_folder_that_was_begun_with_other_options_is_left_alone(jobs, tmp_path, capsys):
    folder = str(tmp_path / "s")
    assert main(["sweep", "seed_everything=0,1", *FIT, "--run_dir", folder]) == 0
    jobs.commands = []
    assert main(["sweep", "seed_everything=0,1", *FIT[:-1], "3e-4", "--run_dir", folder]) == 1
    assert jobs.commands == [] and "begun with other options" in capsys.readouterr().err


def test_a_sweep_that_was_refused_does_not_make_the_right_one_fail(jobs, tmp_path, capsys):
    argv = ["sweep", "seed_everything=0,1", *FIT[:-1]]
    place = ["--run_dir", str(tmp_path / "s")]
    assert [main([*argv, rate, *place]) for rate in ("1e-4", "3e-4", "1e-4")] == [0, 1, 0]


@pytest.mark.parametrize("name", ["o'b/s", "fit"])
def test_a_sweep_may_go_to_a_folder_of_any_name(name, jobs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", "seed_everything=0,1", *FIT, "--run_dir", name]) == 0
    assert (tmp_path / name / "seed_everything=1/summary.json").exists()


def test_a_job_inherits_nothing_of_the_processes_that_the_launcher_counts(jobs, tmp_path, monkeypatch):
    for name in ("SLURM_NTASKS", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "0")
    assert main(["sweep", "seed_everything=0", *FIT, "--run_dir", str(tmp_path / "s")]) == 0
    assert not {"SLURM_NTASKS", "LOCAL_RANK", "WORLD_SIZE"} & set(jobs.environments[0])


@pytest.mark.parametrize("argv, words", [
    (["seed_everything=0,1"], "--run_dir"),
    (["seed_everything=0,1", "online=o2td4,td3", "--run_dir", "s"], "online=o2td4: no such option; did you mean"),
    (["sed_everything=0,1", "--run_dir", "s"], "did you mean 'seed_everything'"),
    (["seed_everything=0,0", "--run_dir", "s"], "two jobs of the sweep have the same name"),
    (["seed_everything=0,", "--run_dir", "s"], "configuration"),
    (["seed_everything=0,1", "--model.actor_rl", "1", "--run_dir", "s"], "did you mean 'actor_lr'"),
    (["seed_everything=0,1", "hydra/launcher=ray", "--run_dir", "s"], "pip install 'o2o-lightning[ray]'"),
])  # fmt: skip
def test_a_sweep_that_can_not_be_is_refused_before_its_first_job(argv, words, jobs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "find_spec", lambda name: None)
    assert main(["sweep", *argv]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and jobs.commands == []


PENDULUM = [
    "--phase", "online", "online=td3", "--data.env_id", "Pendulum-v1", "--data.mix", "none", "--data.dataset", "null",
    "steps.env=30", "--data.warmup_steps", "20", "--data.batch_size", "8", "--data.eval_every", "20",
    "--data.eval_episodes", "1", "--model.hidden", "[8,8]", "--trainer.accelerator", "cpu",
]  # fmt: skip


@pytest.mark.slow
def test_joblib_runs_two_jobs_at_a_time(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    assert main(["sweep", "seed_everything=0,1", *launcher, *PENDULUM, "--run_dir", str(tmp_path / "s")]) == 0
    seeds = [json.loads(path.read_text())["seed"] for path in sorted(tmp_path.glob("s/*/summary.json"))]
    assert seeds == [0, 1]


@pytest.mark.slow
def test_a_job_of_a_sweep_may_run_on_two_devices(tmp_path):
    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    assert main(["sweep", "seed_everything=0", *PENDULUM, *two, "--run_dir", str(tmp_path / "s")]) == 0
    assert len(list(tmp_path.glob("s/*/online/checkpoints/last.*.state/rank-1.pt"))) == 1
