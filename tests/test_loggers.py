"""What loggers are told: one run for all phases, names by section, hyper-parameters; read back from their files."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PHASES = ("offline", "reevaluate", "align", "online")
SIZES = (
    "steps.offline=20", "steps.reevaluate=10", "steps.align=10", "steps.env=30", "--data.eval_episodes", "1",
    "--data.batch_size", "8", "--data.warmup_steps", "5", "--trainer.log_every_n_steps", "5",
    "--data.eval_every", "10", "--model.hidden", "[8,8]", "--trainer.accelerator", "cpu",
)  # fmt: skip
# of metrics.csv, and where a pipeline's logger has them
NAMED = {"critic_loss": "loss/critic", "return_mean": "eval/return_mean", "multiplier": "constraint/multiplier"}


def pipeline(tmp_path: Path, pendulum: str, *argv: str, **environment: str) -> Path:
    """A run directory of all phases, made by a process of its own: loggers write what they hold when it ends."""
    words = ["fit", "--phase", "all", "--data.dataset", pendulum, *SIZES, *argv, "--run_dir", "run"]
    command(tmp_path, *words, **environment)
    return tmp_path / "run"


def command(folder: Path, *words: str, **environment: str) -> None:
    process = [sys.executable, "-m", "o2o_lightning.cli.main", *words]
    done = subprocess.run(process, cwd=folder, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def logged(tmp_path_factory: pytest.TempPathFactory, pendulum: str) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """The same pipeline's values by phase and name, from its CSV files."""
    run, found = pipeline(tmp_path_factory.mktemp("csv"), pendulum), {}
    for phase in PHASES:
        rows = list(csv.DictReader((run / phase / "metrics.csv").open()))
        found[phase] = {
            name: [(int(row["step"]), float(row[name])) for row in rows if row[name]]
            for name in NAMED
            if name in rows[0]
        }
    return found


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, pendulum: str) -> dict[str, Any]:
    return logged(tmp_path_factory, pendulum)


def test_tensorboard_has_a_run_a_phase_with_sections_and_hyperparameters(
    expected: dict[str, Any], tmp_path: Path, pendulum: str
) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = pipeline(tmp_path, pendulum, "logger=tensorboard")
    for phase in PHASES:
        shown = EventAccumulator(str(run / phase)).Reload()
        for name, values in expected[phase].items():
            found = [(event.step, event.value) for event in shown.Scalars(NAMED[name])]
            assert found == [(step, pytest.approx(value, rel=1e-6)) for step, value in values], (phase, name)
        assert "_hparams_/session_start_info" in shown.PluginTagToContent("hparams")


def test_weights_and_biases_has_one_run_with_phases_as_namespaces(
    expected: dict[str, Any], tmp_path: Path, pendulum: str
) -> None:
    pytest.importorskip("wandb")
    run = pipeline(tmp_path, pendulum, "logger=wandb", WANDB_MODE="offline")
    (file,) = run.glob("wandb/offline-run-*/*.wandb")  # of all four phases
    rows, config, axes = decoded(file)
    assert [step for step, _ in rows] == [*range(len(rows))]  # W&B's own steps never go back
    for phase in PHASES:
        for name, values in expected[phase].items():
            key = f"{phase}/{NAMED[name]}"
            assert [(row[f"{phase}/step"], row[key]) for _, row in rows if key in row] == values
        assert axes[f"{phase}/*"] == f"{phase}/step"
        assert config[phase]["method"]["class_path"].startswith("o2o_lightning.methods.")


def test_weights_and_biases_goes_on_with_the_run_of_the_phases_before(tmp_path: Path, pendulum: str) -> None:
    pytest.importorskip("wandb")
    words = ["fit", "--phase", "offline", "--data.dataset", pendulum, "--trainer.max_steps", "4", "logger=wandb"]
    words += ["--data.eval_episodes", "1", "--trainer.accelerator", "cpu", "--run_dir", "run"]
    command(tmp_path, *words, WANDB_MODE="offline")
    command(tmp_path, "resume", "run", "--trainer.max_steps", "8", WANDB_MODE="offline")
    assert len({path.stem for path in tmp_path.glob("run/wandb/offline-run-*/*.wandb")}) == 1


def test_mlflows_own_default_has_one_run_with_phases_as_namespaces(
    expected: dict[str, Any], tmp_path: Path, pendulum: str
) -> None:
    mlflow = pytest.importorskip("mlflow")
    run = pipeline(tmp_path, pendulum, "logger=mlflow")
    uri = f"sqlite:///{tmp_path}/mlflow.db" if (tmp_path / "mlflow.db").exists() else f"file:{tmp_path}/mlruns"
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("o2o-lightning")
    (one,) = client.search_runs([experiment.experiment_id])
    assert one.info.run_id == (run / "mlflow-run").read_text()
    for phase in PHASES:
        for name, values in expected[phase].items():
            history = client.get_metric_history(one.info.run_id, f"{phase}/{NAMED[name]}")
            assert sorted((metric.step, metric.value) for metric in history) == values
    assert one.data.params["offline/method/class_path"] == "o2o_lightning.methods.td3_bc.TD3BC"
    assert one.data.params["online/env_steps"] == "30"


def decoded(file: Path) -> tuple[list[tuple[int, dict[str, Any]]], dict[str, Any], dict[str, str]]:
    """Rows with their steps, the configuration, and the axis of each group of names, of W&B's own file.

    The file is a log as LevelDB has it: blocks of 32 KiB of records, each with checksum, length and kind.
    """
    from wandb.proto import wandb_internal_pb2

    content, place, parts = file.read_bytes(), 7, b""
    rows: list[tuple[int, dict[str, Any]]] = []
    config: dict[str, Any] = {}
    axes: dict[str, str] = {}
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind not in (1, 4):  # whole, or the last part of one
            continue
        record = wandb_internal_pb2.Record.FromString(parts)
        parts = b""
        if record.HasField("history"):
            values = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
            }
            rows.append((record.history.step.num, values))
        for item in record.config.update:
            config[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
        if record.HasField("metric") and record.metric.glob_name:
            axes[record.metric.glob_name] = record.metric.step_metric
    return rows, config, axes
