"""Bad input to `o2o fit`: one line that names the place and the remedy, exit code 2, and nothing written."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

O2O = Callable[..., int]
LAST = "RUN_DIR/reevaluate/checkpoints/last.ckpt"


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, pendulum: str, chain: dict[str, Any]) -> dict[str, str]:
    """Names for the command lines below: datasets that are wrong in one way each, and checkpoints."""
    folder = tmp_path_factory.mktemp("places")
    with h5py.File(pendulum) as file:
        good = {key: file[key][()] for key in ("observations", "actions", "rewards", "terminals", "timeouts")}

    def dataset(name: str, env_id: str | None = "Pendulum-v1", **changes: Any) -> str:
        with h5py.File(folder / f"{name}.hdf5", "w") as file:
            for key, value in (good | changes).items():
                if value is not None:
                    file[key] = value
            if env_id is not None:
                file["metadata/env_id"] = env_id
        return str(folder / f"{name}.hdf5")

    with_nan = good["observations"].copy()
    with_nan[17, 1] = np.nan
    (folder / "text.hdf5").write_text("observation,action,reward\n")
    (folder / "list.yaml").write_text("model: [1,\n")
    (folder / "unknown.yaml").write_text("modle: {class_path: TD3BC}\n")
    return {
        "good": pendulum,
        "text": str(folder / "text.hdf5"),
        "no_rewards": dataset("no_rewards", rewards=None),
        "deep_actions": dataset("deep_actions", actions=good["actions"][:, :, None]),
        "short_rewards": dataset("short_rewards", rewards=good["rewards"][:-3]),
        "nan": dataset("nan", observations=with_nan),
        "beyond": dataset("beyond", actions=good["actions"] * 3),
        "nameless": dataset("nameless", env_id=None),
        "list": str(folder / "list.yaml"),
        "unknown": str(folder / "unknown.yaml"),
        **{phase: str(run.checkpoint) for phase, run in chain.items()},
    }


FILE = "--phase offline dataset=file --data.dataset"
CASES = {
    # the dataset
    "missing file": (f"{FILE} nowhere.hdf5", ["nowhere.hdf5", "no file", "o2o data list"]),
    "not HDF5": (f"{FILE} {{text}}", ["text.hdf5", "HDF5"]),
    "missing key": (f"{FILE} {{no_rewards}}", ["no_rewards.hdf5", "'rewards' is missing", "add the array"]),
    "wrong rank": (f"{FILE} {{deep_actions}}", ["deep_actions.hdf5", "'actions' has shape (480, 1, 1)", "two axes"]),
    "wrong length": (f"{FILE} {{short_rewards}}", ["'rewards' has 477 rows", "'observations' has 480"]),
    "NaN": (f"{FILE} {{nan}}", ["nan.hdf5", "'observations' has NaN at row 17", "repair"]),
    "actions outside the space": (
        f"{FILE} {{beyond}}",
        ["beyond.hdf5", "bounds of Pendulum-v1, [-2, 2]", "--data.env_id"],
    ),
    "unknown prefix": (f"{FILE} s3:bucket", ["dataset s3:bucket", "`d4rl:NAME`", "o2o data list"]),
    "no dataset": ("--phase offline dataset=file", ["no dataset", "--data.dataset"]),
    # the environment
    "another environment": (
        "--phase offline --data.env_id Walker2d-v5",
        ["Walker2d-v5", "17 values", "11", "--data.env_id"],
    ),
    "discrete actions": ("--phase offline --data.env_id CartPole-v1", ["CartPole-v1", "Discrete", "continuous"]),
    "unknown environment": ("--phase offline --data.env_id Hoper-v5", ["Hoper-v5", "Hopper", "--data.env_id"]),
    "an online phase without environment": (
        "steps.offline=2 dataset=file --data.dataset {nameless}",
        ["nameless.hdf5", "does not name its environment", "--data.env_id"],
    ),
    # Hydra
    "unknown group": ("offlin=td3_bc", ["offlin", "did you mean 'offline'"]),
    "unknown option of a group": ("--phase online online=o2td33", ["online=o2td33", "did you mean 'o2td3'"]),
    "an option like no other": (
        "--phase online logger=xyz",
        ["logger=xyz", "There are csv, mlflow, tensorboard, wandb"],
    ),
    "misspelt key": ("steps.alig=5", ["steps.alig", "did you mean 'steps.align'"]),
    "a new key that nothing reads": ("+offlin=td3_bc", ["+offlin=td3_bc", "nothing reads", "o2o fit -h"]),
    "unknown tier": ("--phase online tier=gold", ["table.gold", "tier="]),
    "a broken override": ("--phase offline trainer.max_steps=[", ["'['", "o2o fit -h"]),
    "phase as a group": ("phase=align", ["phase=align", "--phase=align"]),
    "a list of phases with a stranger": ("phases=[offline,alignn]", ["alignn", "reevaluate"]),
    "an experiment that is not there": (
        "--phase offline experiment=no_constrain",
        ["experiment=no_constrain", "did you mean 'no_constraint'"],
    ),
    "a seed that is no number": ("--phase offline seed_everything=a", ["--seed_everything a", "a whole number"]),
    "a search path that is not there": (
        "--phase offline hydra.searchpath=[file:///no/where]",
        ["/no/where", "searchpath"],
    ),
    # options
    "misspelt model option": ("--phase offline --model.actr_lr 1", ["--model.actr_lr", "TD3BC", "'actor_lr'"]),
    "misspelt nested option": (
        "--phase online --model.threshold.edn 1",
        ["--model.threshold.edn", "td3.Online", "'threshold.end'"],
    ),
    "an option of no phase": ("--data.env_stpes 5", ["--data.env_stpes", "no phase", "did you mean 'env_steps'"]),
    "an option for a phase that the run has not": (
        "--phase offline --align.model.discount 0.9",
        ["--align.model.discount", "no phase 'align'", "offline"],
    ),
    "a data key of another algorithm": ("online=o2ppo +data.utd=10", ["+data.utd=10", "no phase of this run"]),
    "a threshold where there is none": (
        "--phase online online=o2ppo --model.reference.threshold_scale 0.5",
        ["--model.reference.threshold_scale", "no threshold"],
    ),
    "misspelt data option": ("--phase online --data.env_stpes 5", ["--data.env_stpes", "OnlineData", "'env_steps'"]),
    "an abbreviation": ("--phase offline --trainer.max_step 5", ["--trainer.max_step:", "'--trainer.max_steps'"]),
    "misspelt part": ("--phase offline --dta.batch_size 5", ["--dta.batch_size", "'--data.batch_size'"]),
    "an option of another phase": ("--phase offline --data.env_steps 5", ["--data.env_steps", "OfflineData"]),
    "a value of another type": ("--data.env_steps abc", ["--data.env_steps abc", "a whole number"]),
    "a step count of another type": ("--phase align steps.align=abc", ["--trainer.max_steps abc", "a whole number"]),
    "a value outside the choices": (
        "--phase online --model.reference.mode bst",
        ["--model.reference.mode bst", "best, trials, returns, judged, interval, frozen"],
    ),
    "a missing value": ("--phase offline --data.batch_size", ["--data.batch_size", "value is missing"]),
    "an unknown logger": (
        "--phase offline --trainer.logger TensorBordLogger",
        ["--trainer.logger TensorBordLogger", "did you mean 'TensorBoardLogger'"],
    ),
    "an accelerator that is not there": ("--phase offline --trainer.accelerator abacus", ["abacus", "--trainer"]),
    "gradient clipping by the Trainer": ("--phase offline --trainer.gradient_clip_val 1.0", ["--trainer", "clipping"]),
    "a callback that needs a logger": (
        "--phase offline --trainer.logger false --trainer.callbacks+=LearningRateMonitor",
        ["--trainer", "LearningRateMonitor", "no logger"],
    ),
    "neither option nor override": ("--phase offline offline", ["'offline'", "group=option", "o2o fit -h"]),
    "unknown phase": ("--phase aling", ["--phase aling", "reevaluate", "all"]),
    "phase without a value": ("--phase", ["--phase", "value is missing"]),
    "missing config file": ("--phase offline --config no.yaml", ["--config", "no.yaml", "no such file"]),
    "a config that is not YAML": ("--phase offline --config {list}", ["list.yaml", "not YAML"]),
    "a config with a strange key": (
        "--phase offline --config {unknown}",
        ["unknown.yaml", "'modle.class_path'", "'--model.class_path'"],
    ),
    "printing several phases": ("--print_config", ["--print_config", "--phase"]),
    "another phase's model": (
        "--phase offline --model Align --model.init_from {reevaluate}",
        ["Align", "--phase align"],
    ),
    "a model of version 0.1": (
        "--phase align --model AlignTD3 --model.init_from {reevaluate}",
        ["--model AlignTD3", "did you mean 'Align'"],
    ),
    # numbers
    "batch size 0": ("--phase offline --data.batch_size 0", ["--data.batch_size 0", "at least 2"]),
    "no updates": ("--phase offline --trainer.max_steps 0", ["--trainer.max_steps 0", "at least 1", "steps.offline=N"]),
    "negative updates": ("--phase offline --trainer.max_steps -5", ["-5", "max_steps", "--trainer"]),
    "no updates in a later phase": ("steps.align=0", ["--trainer.max_steps 0", "'align'", "steps.align=N"]),
    "updates of the online phase": (
        "--phase online --trainer.max_steps 5 --model.init_from {align}",
        ["--trainer.max_steps 5", "--data.env_steps"],
    ),
    "no environment steps": (
        "--phase online --data.env_steps 0 --model.init_from {align}",
        ["--data.env_steps", "at least 1"],
    ),
    "no policy delay": ("--phase offline --model.policy_delay 0", ["--model.policy_delay 0", "at least 1"]),
    "no online policy delay": ("--phase online --model.policy_delay 0", ["--model.policy_delay 0", "at least 1"]),
    "multiplier 0": (
        "--phase online --model.multiplier.start 0",
        ["--model.multiplier.start 0", "above 0", "--model.constraint false"],
    ),
    "multiplier never": ("--phase online --model.multiplier.every 0", ["--model.multiplier.every 0", "at least 1"]),
    "reference period 0": ("--phase online --model.reference.period 0", ["--model.reference.period 0", "at least 1"]),
    "negative learning rate": ("--phase offline --model.actor_lr -1", ["--model.actor_lr -1", "at least 0"]),
    "a run without checkpoints": (
        "--phase offline --trainer.fast_dev_run true",
        ["--trainer.fast_dev_run", "experiment=quick"],
    ),
    # checkpoints
    "no checkpoint to align": ("--phase align", ["--phase align", "--model.init_from", LAST]),
    "no checkpoint to re-evaluate": ("--phase reevaluate", ["--phase reevaluate", "--model.init_from RUN_DIR/offline"]),
    "constraint without a policy": ("--phase online", ["--phase online", "--model.init_from", "experiment=scratch"]),
    "missing checkpoint": ("--phase align --model.init_from no.ckpt", ["checkpoint no.ckpt", "missing", "last.ckpt"]),
    "not a checkpoint": ("--phase align --model.init_from {text}", ["text.hdf5", "checkpoint"]),
    "a checkpoint of the wrong phase": (
        "--phase align --data.dataset {good} dataset=file --model.init_from {align}",
        ["written by phase 'align'", "reevaluate or offline", "--model.init_from"],
    ),
    "a checkpoint of other sizes": (
        "--phase align --model.init_from {reevaluate}",
        ["takes 3 observation values", "the data has 11 and 3", "dataset"],
    ),
    "a checkpoint for phases that start from data": (
        "--model.init_from {offline}",
        ["--model.init_from", "'offline'", "phases=[reevaluate,align,online]"],
    ),
    # the run directory
    "a run directory under a file": ("--phase offline --run_dir note.txt/run", ["note.txt", "is a file", "directory"]),
    "a finished phase": (
        "--phase offline --run_dir finished",
        ["finished", "'offline' is already finished", "another"],
    ),
    "a phase that was started": ("--phase offline --run_dir begun", ["begun", "not finished", "remove that folder"]),
    "somebody else's directory": (
        "--phase offline --run_dir foreign",
        ["foreign", "manifest.json", "nothing is written over", "another"],
    ),
    "a run directory without a name": ("--phase offline --run_dir", ["--run_dir", "value is missing"]),
}


@pytest.mark.parametrize(("line", "phrases"), CASES.values(), ids=CASES.keys())
def test_bad_input_is_one_line_with_a_remedy_and_writes_nothing(
    line: str,
    phrases: list[str],
    places: dict[str, str],
    o2o: O2O,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "note.txt").write_text("mine")
    for name, file in (("finished", "summary.json"), ("begun", "config.yaml")):
        (tmp_path / name / "offline").mkdir(parents=True)
        (tmp_path / name / "offline" / file).write_text("{}")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/manifest.json").write_text("of an application")
    before = snapshot(tmp_path)

    code = o2o("fit", *shlex.split(line.format(**places)))

    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == "" and captured.err.startswith("o2o: ") and captured.err.count("\n") == 1, captured
    assert [phrase for phrase in phrases if phrase not in captured.err] == [], captured.err
    assert snapshot(tmp_path) == before


def test_an_unwritable_directory_is_refused(
    o2o: O2O, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # what the kernel says to a user without the right; the tests may run as root, whom it never refuses
    allowed = os.access
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path and allowed(path, mode))
    assert o2o("fit", "--phase", "offline", "--run_dir", tmp_path / "new" / "run") == 2
    assert f"{tmp_path} cannot be written. Pass a directory that you may write to." in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_refuses_is_one_line_too(
    o2o: O2O, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("o2o_lightning.checkpoint.run.write_atomically", full)
    assert o2o("fit", "--phase", "offline", "--trainer.max_steps", "2", "--run_dir", tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "config.yaml: No space left on device" in error


def test_rows_of_another_run_stop_a_phase_before_it_begins(
    o2o: O2O, tmp_path: Path, pendulum: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "logs/offline").mkdir(parents=True)
    (tmp_path / "logs/offline/metrics.csv").write_text("mine")
    argv = ["--phase", "offline", "--data.dataset", pendulum, "--trainer.max_steps", "2"]
    argv += ["--trainer.logger.save_dir", str(tmp_path / "logs"), "--run_dir", str(tmp_path / "run")]
    before = snapshot(tmp_path)
    assert o2o("fit", *argv) == 2
    error = capsys.readouterr().err
    assert error.count("o2o: ") == 1 and "metrics.csv: it exists, and nothing is written over" in error
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("line", "phrase"),
    [
        ("test --ckpt_path {align} online=o2sac", "online=o2sac: `o2o test` takes no choices"),
        ("predict --ckpt_path {align} --phase online", "--phase: `o2o predict` takes no choices"),
        ("validate --ckpt_path {align} --run_dir taken", "validate.json: it exists, and nothing is written over"),
        ("test --ckpt_path {homeless}", "names no environment to play in. Pass --data.env_id ID"),
        ("resume", "no run directory. Write `o2o resume RUN_DIR`"),
        ("resume --run_dir taken", "no run directory. Write `o2o resume RUN_DIR`"),
        ("resume taken --run_dir other", "--run_dir: the run's own directory"),
        ("resume taken --data.env_steps 40", "--data.env_steps: this run has no online phase, only offline"),
        ("demo --run_dir taken", "taken/summary.json: it is not a demo's. Pass another --run_dir"),
    ],
)
def test_other_commands_refuse_what_they_would_ignore_or_write_over(
    line: str,
    phrase: str,
    places: dict[str, str],
    o2o: O2O,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/validate.json").write_text("mine")
    (tmp_path / "taken/summary.json").write_text('{"phase": "offline"}')
    entry = {"phase": "offline", "phases": ["offline"], "overrides": [], "options": [], "cwd": str(tmp_path)}
    (tmp_path / "taken/plan.json").write_text(json.dumps([entry]))
    checkpoint = torch.load(places["align"], weights_only=True)
    checkpoint["o2o"]["env_id"] = None
    torch.save(checkpoint, tmp_path / "homeless.ckpt")
    before = snapshot(tmp_path)
    assert o2o(*shlex.split(line.format(**places, homeless="homeless.ckpt"))) == 2
    error = capsys.readouterr().err
    assert error.startswith("o2o: ") and error.count("\n") == 1 and phrase in error, error
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("command, words", [
    ("fti", "Did you mean 'fit'?"), ("resmue", "Did you mean 'resume'?"), ("--wat", "Choose one of fit, "),
    ("", "Choose one of fit, "),
])  # fmt: skip
def test_an_unknown_command_is_guessed_or_lists_those_that_exist(
    command: str, words: str, o2o: O2O, capsys: pytest.CaptureFixture[str]
) -> None:
    assert o2o(command) == 2
    assert capsys.readouterr().err.startswith(f"o2o: unknown command '{command}'. {words}")


def test_windows_is_told_before_anything_is_imported_that_it_has_not() -> None:
    program = (
        "import sys; from o2o_lightning.cli.main import main; sys.platform = 'win32'; print('resource' in sys.modules)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", f"{program}; sys.exit(main(['fit']))"], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout) == (2, "False\n") and ended.stderr.startswith("o2o: Windows: ")


@pytest.mark.parametrize(("every", "names"), [(5, "critic_loss"), (1000, "score; losses come every 1000 updates")])
def test_a_callback_that_monitors_what_is_not_there_is_told_what_is(
    every: int, names: str, pendulum: str, tmp_path: Path, o2o: O2O, capsys: pytest.CaptureFixture[str]
) -> None:
    line = f"fit --phase offline offline=td3_bc --data.dataset {pendulum} --trainer.max_steps 10 --model.hidden [8]"
    more = f" --data.eval_episodes 1 --run_dir {tmp_path / 'run'} --trainer.log_every_n_steps {every}"
    monitor = " --trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor=val_loss"
    assert o2o(*(line + more + monitor).split()) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said and names in said.rpartition("It has")[2]


@pytest.mark.parametrize(
    "argv, said, meant",
    [
        ("policy improt x", "o2o policy: argument COMMAND: invalid choice: 'improt'", "Did you mean 'import'?"),
        ("data ceck x", "o2o data: argument COMMAND: invalid choice: 'ceck'", "Did you mean 'check'?"),
        ("play x --recrod a.gif", "o2o play: unrecognized arguments: --recrod", "Did you mean '--record'?"),
        ("policy export x --fromat onnx", "o2o policy: unrecognized arguments: --fromat", "Did you mean '--format'?"),
        ("report", "o2o report: the following arguments are required: RUN_DIR.", "See `o2o report -h`."),
        ("play x --rec a.gif", "o2o play: unrecognized arguments: --rec", "See `o2o play -h`."),
    ],
)
def test_a_mistyped_word_is_one_line_with_what_was_meant(
    argv: str, said: str, meant: str, o2o: O2O, capsys: pytest.CaptureFixture[str]
) -> None:
    assert o2o(*argv.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"o2o: {said}") and meant in error and error.count("\n") == 1
