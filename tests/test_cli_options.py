"""How `o2o fit` reads its command line: help, configurations that go round, what beats what, loggers, Ctrl-C."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from lightning.pytorch.callbacks.progress.progress_bar import ProgressBar

from o2o_lightning.callbacks.metrics import MetricsFile
from o2o_lightning.callbacks.progress import PhaseProgress
from o2o_lightning.checkpoint.run import write_plan
from o2o_lightning.cli.command import split
from o2o_lightning.cli.compose import compose, groups
from o2o_lightning.cli.demo import COUNTS, _as_many_as_time_allows
from o2o_lightning.cli.estimate import Estimate
from o2o_lightning.cli.plan import plan
from o2o_lightning.methods.o2 import td3
from o2o_lightning.phases.align import Align

O2O = Callable[..., int]


def planned(*argv: str) -> dict[str, dict[str, Any]]:
    """The typed configuration of every phase that the command line would run."""
    return {step.phase: yaml.safe_load(step.cli.written()) for step in plan(split(list(argv)))[0]}


def options_of(config: dict[str, Any]) -> dict[str, Any]:
    """What ``--model.x`` sets: the arguments of the phase, and of the method that it holds."""
    own = dict(config["model"]["init_args"])
    method = own.pop("method")
    return own | method["init_args"]


def command(*argv: str, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "o2o_lightning.cli.main", *argv],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell's background job, and some test runners, ignore Ctrl-C: hand it on as a terminal would
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


# ---- help ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("argv", [("fit", "-h"), ("fit", "--help"), ("fit",), ("fit", "--phase", "all", "-h")])
def test_the_help_fits_on_a_screen_and_starts_nothing(
    argv: tuple[str, ...], o2o: O2O, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert o2o(*argv) == 0
    page = capsys.readouterr().out
    lines = page.splitlines()
    assert len(lines) <= 45 and max(len(line) for line in lines) <= 105
    assert list(tmp_path.iterdir()) == []
    names = [
        "--run_dir",
        "--seed_everything",
        "--data.dataset",
        "--data.env_id",
        "--data.env_steps",
        "--data.eval_every",
    ]
    names += ["--data.eval_episodes", "--model.init_from", "--trainer.max_steps", "--config", "--print_config"]
    names += ["steps.offline=N", "steps.reevaluate=N", "steps.align=N", "steps.env=N"]
    options = [option for group, options in groups().items() if group not in ("phase", "dataset") for option in options]
    assert [name for name in (*names, *groups(), *groups()["phase"], *options) if name not in page] == []


def test_the_help_names_the_defaults_that_a_run_has(o2o: O2O, capsys: pytest.CaptureFixture[str]) -> None:
    o2o("fit", "-h")
    page = capsys.readouterr().out
    assert "1,000,000, 500,000, 500,000, 100,000" in page and "embedded*" in page and "o2td3*" in page
    assert "[embedded:hopper-medium]" in page and "evaluations [1000]" in page and "evaluation [10]" in page


def test_the_help_needs_no_heavy_import() -> None:
    code = (
        "import sys; from o2o_lightning.cli.main import main; main(['fit', '-h']); print({'torch'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "set()"


def test_a_phases_help_explains_its_own_options_and_the_trainers(
    o2o: O2O, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert o2o("fit", "--phase", "align", "--help") == 0
    page = capsys.readouterr().out
    for option in ("--model.curvature", "--data.batch_size", "--trainer.max_steps", "--trainer.precision"):
        assert option in page
    assert "--method" not in page and ":class:" not in page and "``" not in page  # as it is typed, as it is read
    assert len(page.splitlines()) < 96
    assert o2o("fit", "--phase", "online", "-h") == 0
    assert "--model.threshold.end" in capsys.readouterr().out
    assert o2o("fit", "--model.help", "Online") == 0
    assert "--model.init_from" in capsys.readouterr().out


def test_a_phases_help_shows_the_values_that_hold(o2o: O2O, capsys: pytest.CaptureFixture[str]) -> None:
    assert o2o("fit", "--phase", "online", "-h", "dataset=hopper-expert-v2", "online=o2sac") == 0
    page = capsys.readouterr().out
    composed = compose("online", split(["dataset=hopper-expert-v2", "online=o2sac"]))["model"]["init_args"]
    assert f"--model.threshold.end {composed['threshold']['end']}" in page
    assert "policy_noise" not in page  # of another method


COMPLETE = """
COMP_LINE='{line}'; COMP_POINT=${{#COMP_LINE}}; read -ra COMP_WORDS <<< "${{COMP_LINE//=/ = }}"
[[ "$COMP_LINE" == *" " ]] && COMP_WORDS+=(""); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _o2o; echo "${{COMPREPLY[*]}}"
"""


def test_the_shell_completes_commands_groups_and_options(o2o: O2O, capsys: pytest.CaptureFixture[str]) -> None:
    assert o2o("--print_completion", "bash") == 0
    script = capsys.readouterr().out
    lines = ["o2o res", "o2o fit online=o2", "o2o fit --model.threshold.e", "o2o policy exp", "o2o data c"]
    lines.append("o2o report re")
    asked = script + "".join(COMPLETE.format(line=line) for line in lines)
    said = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=True).stdout.splitlines()
    assert said[0] == "resume" and said[3] == "export"
    assert said[4].split() == ["check", "cut"] and said[5] == ""  # what comes behind other commands are files
    assert said[1].split() == ["o2ppo", "o2sac", "o2td3"]
    assert said[2].split() == ["--model.threshold.end", "--model.threshold.env_steps", "--model.threshold.episodes"]
    assert o2o("--print_completion", "tcsh") == 2
    assert "choose one of bash, zsh" in capsys.readouterr().err


def test_the_first_help_names_every_command(o2o: O2O, capsys: pytest.CaptureFixture[str]) -> None:
    for argv in ((), ("-h",), ("--help",)):
        assert o2o(*argv) == 0
        page = capsys.readouterr().out
        assert all(f"o2o {name}" in page for name in ("fit", "test", "validate", "predict", "data", "demo"))


# ---- configurations that go round ------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["offline", "reevaluate", "align", "online"])
def test_a_printed_configuration_goes_round(
    phase: str, o2o: O2O, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    line = (
        "fit",
        "--phase",
        phase,
        "dataset=hopper-expert-v2",
        "--data.batch_size",
        "64",
        "--run_dir",
        "elsewhere/run",
    )
    assert o2o(*line, "--print_config") == 0
    printed = capsys.readouterr().out
    assert "$RUN_DIR" in printed and "elsewhere" not in printed and str(tmp_path) not in printed
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a.yaml").write_text(printed)
    again = ("fit", "--phase", phase, "--config", "a.yaml")
    assert o2o(*again, "--print_config") == 0
    assert capsys.readouterr().out == printed
    assert o2o(*again, "--model.critic_lr", "0.5", "--print_config") == 0
    was, now = yaml.safe_load(printed), yaml.safe_load(capsys.readouterr().out)
    was["model"]["init_args"]["method"]["init_args"]["critic_lr"] = 0.5
    assert now == was and was["data"]["init_args"]["batch_size"] == 64


# ---- what beats what -------------------------------------------------------------------------------------------------


def test_an_option_beats_the_file_beats_the_group_beats_the_default(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("model: {init_args: {exploration_noise: 0.3, threshold: {end: 0.5}}}\n")

    def noise_and_end(*argv: str) -> tuple[float, float, float]:
        found = options_of(planned("--phase", "online", *argv)["online"])
        return found["exploration_noise"], found["threshold"]["end"], found["discount"]

    assert noise_and_end() == (0.1, 0.04, 0.99)
    assert noise_and_end("tier=expert") == (0.05, 0.000625, 0.99)
    assert noise_and_end("tier=expert", "--config", str(file)) == (0.3, 0.5, 0.99)
    option = ("--model.exploration_noise", "0.7")
    assert noise_and_end("tier=expert", "--config", str(file), *option) == (0.7, 0.5, 0.99)
    # wherever it stands on the line, a file never beats what is typed
    assert noise_and_end(*option, "--config", str(file), "tier=expert") == (0.7, 0.5, 0.99)
    assert noise_and_end(*option, "-c", str(file)) == (0.7, 0.5, 0.99)


def test_options_of_all_phases_reach_those_that_know_them() -> None:
    budget = ("--data.env_steps", "7", "--data.eval_every", "3", "--data.eval_episodes", "2", "--trainer.devices", "1")
    found = planned(*budget, "--trainer.max_steps", "9", "--model.curvature=2", "--model.threshold.end=0.5")
    assert list(found) == ["offline", "reevaluate", "align", "online"]
    data = {phase: config["data"]["init_args"] for phase, config in found.items()}
    assert {phase: part.get("env_steps") for phase, part in data.items()} == {
        "offline": None, "reevaluate": None, "align": None, "online": 7
    }  # fmt: skip
    assert {(part["eval_every"], part["eval_episodes"]) for part in data.values()} == {(3, 2)}
    assert [config["trainer"]["max_steps"] for config in found.values()] == [9, 9, 9, -1]
    model = {phase: options_of(config) for phase, config in found.items()}
    assert [phase for phase, part in model.items() if "curvature" in part] == ["align"]
    assert model["align"]["curvature"] == 2 and model["online"]["threshold"]["end"] == 0.5
    assert model["reevaluate"]["init_from"] == "$RUN_DIR/offline/checkpoints/last.ckpt"


def test_a_run_of_later_phases_starts_from_a_checkpoint(chain: dict[str, Any]) -> None:
    start = str(chain["offline"].checkpoint)
    best = planned("best_of=[align]")
    starts = [best[phase]["model"]["init_args"]["init_from"] for phase in ("align", "online")]
    assert starts == ["$RUN_DIR/reevaluate/checkpoints/last.ckpt", "$RUN_DIR/align/checkpoints/best.ckpt"]
    found = planned("phases=[reevaluate,align]", "--model.init_from", start)
    assert [config["model"]["init_args"]["init_from"] for config in found.values()] == [
        start, "$RUN_DIR/reevaluate/checkpoints/last.ckpt"
    ]  # fmt: skip


def test_a_folder_of_ones_own_configurations_adds_options(tmp_path: Path) -> None:
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "mine.yaml").write_text(
        '# @package _global_\ntier: expert\ndata: {dataset: "mine.hdf5", env_id: Hopper-v4}\n'
    )
    found = planned("--phase", "online", f"hydra.searchpath=[file://{tmp_path}]", "dataset=mine")["online"]
    assert options_of(found)["exploration_noise"] == 0.05
    assert (found["data"]["init_args"]["dataset"], found["data"]["init_args"]["env_id"]) == ("mine.hdf5", "Hopper-v4")


def test_an_argument_without_a_default_in_yaml_can_be_added_for_one_phase() -> None:
    found = planned("+align.init_args.actor_lr=0.5")
    assert [options_of(config).get("actor_lr") for config in found.values()] == [3e-4, None, 0.5, 1e-4]


FORMER = """
seed_everything: 0
trainer:
  logger:
    class_path: o2o_lightning.report.metrics.MetricsFile
    init_args:
      save_dir: elsewhere
model:
  class_path: o2o_lightning.phases.{name}
  init_args:
    init_from: {start}
{options}
data:
  class_path: o2o_lightning.data.module.OfflineData
  init_args:
    dataset: a.hdf5
    batch_size: 64
"""
ALIGN = {"actor_lr": 0.002, "critic_lr": 0.004, "curvature": 3.0, "stop": "converged"}


@pytest.mark.parametrize("named", [True, False], ids=["with the class", "options alone"])
def test_a_file_of_version_0_1_sets_its_options(named: bool, tmp_path: Path) -> None:
    file = tmp_path / "old.yaml"
    options = [*(f"{name}: {value}" for name, value in ALIGN.items()), "convergence:", "  every: 7"]
    text = FORMER.format(name="AlignTD3", start="b.ckpt", options="\n".join(f"    {line}" for line in options))
    file.write_text(text if named else text.replace("  class_path: o2o_lightning.phases.AlignTD3\n", ""))
    config = planned("--phase", "align", "--config", str(file), "--model.critic_lr", "0.5")["align"]
    model = config["model"]["init_args"]
    assert resolve_name(config["model"]["class_path"]) is Align
    assert resolve_name(model["method"]["class_path"]) is td3.Align
    assert options_of(config).items() >= {**ALIGN, "critic_lr": 0.5, "init_from": "b.ckpt", "noise_clip": 0.5}.items()
    assert {"stop", "init_from", "convergence"} <= model.keys() and "actor_lr" not in model
    assert model["convergence"]["every"] == 7 and model["convergence"]["window"] == 5
    assert config["data"]["init_args"]["batch_size"] == 64
    logger = config["trainer"]["logger"]
    assert (resolve_name(logger["class_path"]), logger["init_args"]["save_dir"]) == (MetricsFile, "elsewhere")


@pytest.mark.parametrize(
    ("phase", "online", "name", "line"),
    [
        ("offline", "o2td3", "TD3BC", "bc_q_weight: 9.0"),
        ("offline", "o2sac", "CQL", "samples: 9"),
        ("clone", "o2sac", "ClonePolicy", "mode_weight: 9.0"),
        ("reevaluate", "o2td3", "ReevaluateTD3", "polyak: 0.9"),
        ("reevaluate", "o2ppo", "ReevaluatePPO", "value_lr: 0.9"),
        ("align", "o2sac", "AlignSAC", "log_prob_floor: -9.0"),
        ("online", "o2td3", "OnlineTD3", "exploration_noise: 0.9"),
        ("online", "o2sac", "OnlineSAC", "temperature_lr: 0.9"),
        ("online", "o2ppo", "OnlinePPO", "gae_lambda: 0.9"),
    ],
)
def test_every_class_of_version_0_1_is_still_known(
    phase: str, online: str, name: str, line: str, tmp_path: Path
) -> None:
    file, (option, value) = tmp_path / "old.yaml", line.split(": ")
    start = "" if phase == "offline" else "    init_from: b.ckpt\n"
    file.write_text(f"model:\n  class_path: o2o_lightning.phases.{name}\n  init_args:\n{start}    {line}\n")
    composed = planned("--phase", phase, f"online={online}", "--data.dataset", "a.hdf5")
    read = planned("--phase", phase, f"online={online}", "--data.dataset", "a.hdf5", "--config", str(file))
    models = [found[phase]["model"] for found in (composed, read)]
    assert options_of(read[phase])[option] == yaml.safe_load(value) != options_of(composed[phase])[option]
    assert models[0]["class_path"] == models[1]["class_path"]


# ---- loggers and callbacks -------------------------------------------------------------------------------------------


def test_callbacks_are_added_and_loggers_replaced() -> None:
    found = planned(
        "--phase", "offline", "--trainer.callbacks+=LearningRateMonitor", "--trainer.logger", "TensorBoardLogger",
        "--trainer.logger.save_dir", "tb",
    )["offline"]["trainer"]  # fmt: skip
    callbacks = [callback["class_path"].rpartition(".")[2] for callback in found["callbacks"]]
    assert callbacks == ["LearningRateMonitor"]
    assert found["logger"]["class_path"] == "lightning.pytorch.loggers.TensorBoardLogger"
    assert found["logger"]["init_args"]["save_dir"] == "tb"


def test_the_progress_lines_can_be_switched_off(pendulum: str, tmp_path: Path) -> None:
    options = ["--data.dataset", pendulum, "--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]
    step = plan(split(["--phase", "offline", *options]))[0][0]
    built = step.cli.build(tmp_path, "offline")
    assert not any(isinstance(callback, ProgressBar) for callback in built.trainer.callbacks)


def test_the_best_score_on_the_progress_line_is_that_of_the_whole_phase() -> None:
    phase = SimpleNamespace(
        phase="online", clock=5, updates=5, planned_updates=9, curve=[[0, 900.0, 30.0], [5, 800.0, 20.0]], scores={},
        returns={}, display={}, compile_note=lambda updates: None, status=lambda: [],
    )  # fmt: skip
    bar = PhaseProgress()
    bar.disable()
    bar.on_train_start(SimpleNamespace(), phase)
    bar.on_evaluation(SimpleNamespace(), phase, SimpleNamespace(value=25.0))
    assert bar._status(phase, 0.0) == "now 25.0  best 30.0"


@pytest.mark.parametrize(
    ("options", "files"),
    [
        (("logger=tensorboard",), "run/offline/events*"),
        (("--trainer.logger", "TensorBoardLogger", "--trainer.logger.save_dir", "tb"), "tb/**/events*"),
    ],
)
@pytest.mark.skipif(not importlib.util.find_spec("tensorboard"), reason="tensorboard is not installed")
def test_tensorboard_writes_where_it_is_told(
    options: tuple[str, ...], files: str, o2o: O2O, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pendulum: str
) -> None:
    monkeypatch.chdir(tmp_path)
    data = ("--data.dataset", pendulum, "--data.eval_episodes", "1", "--trainer.max_steps", "3")
    assert o2o("fit", "--phase", "offline", *data, *options, "--run_dir", "run") == 0
    assert list(tmp_path.glob(files)) and not (tmp_path / "run/offline/metrics.csv").exists()


def test_a_run_without_a_logger_still_leaves_its_summary(o2o: O2O, tmp_path: Path, pendulum: str) -> None:
    data = ("--data.dataset", pendulum, "--data.eval_episodes", "1", "--trainer.max_steps", "3")
    assert o2o("fit", "--phase", "offline", *data, "--trainer.logger", "false", "--run_dir", tmp_path) == 0
    found = {path.name for path in (tmp_path / "offline").rglob("*") if path.is_file()}
    assert found == {"config.yaml", "summary.json", "best.ckpt", "last.ckpt", "rank-0.pt"}


# ---- processes -------------------------------------------------------------------------------------------------------


def test_ctrl_c_ends_with_130_and_one_line(tmp_path: Path, pendulum: str) -> None:
    process = command(
        "fit", "--phase", "offline", "dataset=file", "--data.dataset", pendulum, "--run_dir", "run", cwd=tmp_path
    )
    started = tmp_path / "run" / "offline" / "metrics.csv"
    deadline = time.monotonic() + 120
    while not started.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == "" and err.count("o2o: ") == 1 and err.splitlines()[-1].startswith("o2o: SIGINT"), err
    assert "o2o resume" in err and (tmp_path / "run" / "offline" / "checkpoints" / "last.ckpt").exists()


def test_bad_input_is_one_line_for_the_shell_too(tmp_path: Path) -> None:
    process = command("fit", "--phase", "align", "--model.init_from", "no.ckpt", cwd=tmp_path)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("o2o: checkpoint no.ckpt: missing.") and os.listdir(tmp_path) == []


# ---- options of several phases ---------------------------------------------------------------------------------------


def test_an_option_that_means_different_things_to_several_phases_is_said_and_can_be_set_for_one() -> None:
    argv = ["online=o2sac", "offline=awac", "--model.temperature", "0.5"]
    configs, notes = planned(*argv), plan(split(argv))[1]
    assert {options_of(config)["temperature"] for config in configs.values()} == {0.5}
    (note,) = [note for note in notes if "--model.temperature" in note]
    assert "offline (0.3333)" in note and "online (0.2)" in note and "--offline.model.temperature" in note

    argv = ["online=o2sac", "offline=awac", "--offline.model.temperature", "0.5", "--online.model.discount=0.9"]
    configs = planned(*argv)
    taken = {phase: options_of(config)["temperature"] for phase, config in configs.items()}
    assert taken["offline"] == 0.5 and taken["reevaluate"] == taken["align"] == taken["online"] == 0.2
    assert [phase for phase, config in configs.items() if options_of(config).get("discount") == 0.9] == ["online"]
    assert not [note for note in plan(split(argv))[1] if "--model" in note]


def test_an_option_of_several_phases_that_agree_on_it_is_not_worth_a_line() -> None:
    argv = ["online=o2td3", "offline=td3_bc", "--model.discount", "0.9", "--data.dataset", "embedded:hopper-medium"]
    assert not [note for note in plan(split(argv))[1] if "--" in note]


# ---- the demo --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_demo_that_was_interrupted_goes_on_where_it_stopped(
    o2o: O2O, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], seeds: int
) -> None:
    started: list[str] = []
    summary = {
        "phase": "online", "algorithm": "td3", "env_id": "Hopper-v5", "dataset": "embedded:hopper-medium",
        "env_steps": 10, "eval_env_steps": 4, "steps": 5, "seconds": 720.0, "source": {"phase": "offline"},
        "score": {"offline": 1.0, "aligned": 2.0, "lowest_early": 3.5, "curve": [[10, 0.0, 3.0]], "final": 3.0},
    }  # fmt: skip
    arms = {arm: [tmp_path / "d" / arm / (f"seed-{seed}" if seeds > 1 else "") for seed in range(seeds)]
            for arm in ("o2td3", "direct")}  # fmt: skip

    def leave(arm: str, phase: str) -> None:
        for seed, run in enumerate(arms[arm]):
            (run / phase).mkdir(parents=True, exist_ok=True)
            text = json.dumps({**summary, "algorithm": "o2td3" if arm == "o2td3" else "td3", "seed": seed})
            for folder in (run / phase, run):
                (folder / "summary.json").write_text(text)

    def command(name: str, argv: list[str]) -> None:
        started.append(name if name == "resume" else " ".join(argv[1:]))
        leave("o2td3", "align" if name == "resume" else argv[1])

    for phase in ("offline", "reevaluate"):
        leave("o2td3", phase)
    leave("direct", "online")
    choices = [*COUNTS, *(["seeds=[0,1]"] if seeds > 1 else [])]
    entry = {"phase": "offline", "overrides": choices, "options": [] if seeds > 1 else ["--seed_everything", "0"]}
    more = {"cwd": ".", "seeds": [0, 1] if seeds > 1 else None}
    for arm, phase in (("o2td3", "offline"), ("direct", "online")):
        write_plan(tmp_path / "d" / arm, [{**entry, **more, "phases": [phase]}])
    for run in arms["o2td3"]:
        (run / "align").mkdir()
        (run / "align/config.yaml").touch()  # killed here
    for name in ("fit", "resume"):
        monkeypatch.setattr(f"o2o_lightning.cli.{name}.main", partial(command, name))
    monkeypatch.setattr("o2o_lightning.cli.demo.subprocess.Popen", lambda argv, **_: Beside(started, argv))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert o2o("demo", "--run_dir", tmp_path / "d", "--seeds", seeds) == 0
    begins = tmp_path / "d/o2td3" / ("seed-$SEED" if seeds > 1 else "")
    assert started[1] == "resume" and "resume" in started[0]
    assert started[2].startswith(
        f"online {' '.join(entry['overrides'] + entry['options'])} --model.init_from {begins}/"
    )
    shown = capsys.readouterr().out
    assert "12.0 minutes" in shown and (tmp_path / "d/curve.png").exists()
    assert "lowest early: lowest evaluation after the first update, within 6,000" in " ".join(shown.split())
    runs = json.loads((tmp_path / "d/summary.json").read_text())["runs"]
    assert [(arm["method"], arm["seeds"]) for arm in runs] == [
        ("O2TD3", [*range(seeds)]),
        ("direct TD3", [*range(seeds)]),
    ]
    assert o2o("demo", "--run_dir", tmp_path / "d") == 0 and "12.0 minutes" in capsys.readouterr().out


@pytest.mark.parametrize(("seconds", "seeds"), [(400.0, 3), (430.0, 1), (None, 1)])
def test_a_demo_is_of_three_seeds_where_time_allows(
    seconds: float | None, seeds: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("o2o_lightning.cli.estimate.measured", lambda *_: Estimate({"offline": 0.0, "online": seconds}))
    assert _as_many_as_time_allows(tmp_path, ["experiment=quick"]) == seeds
    entry = {"phase": "offline", "phases": ["offline"], "overrides": [], "options": [], "cwd": "."}
    write_plan(tmp_path, [{**entry, "seeds": [0, 1]}])
    assert _as_many_as_time_allows(tmp_path, ["experiment=quick"]) == 2  # it goes on as it has begun


class Beside(AbstractContextManager["Beside"]):
    """Stands for the process of the naive run."""

    def __init__(self, started: list[str], argv: list[str]) -> None:
        started.append(f"beside {argv[3]}")

    def __exit__(self, *_: object) -> None: ...

    def wait(self) -> int:
        return 0
