"""A run that is killed and resumed ends as one that was never interrupted: the same bits."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import killing
import pytest
import torch

from o2o_lightning.checkpoint.run import add_to_plan, read_plan
from o2o_lightning.cli.main import main

SIZES = [
    "steps.offline=40", "steps.reevaluate=30", "steps.align=30", "steps.env=90", "checkpoint_every=20",
    "--data.eval_every_updates", "25", "--data.eval_every", "40", "--data.eval_episodes", "1",
    "--trainer.log_every_n_steps", "10", "--data.chunk", "8",
]  # fmt: skip
REPLAY = ["--data.batch_size", "16", "--data.warmup_steps", "20"]
PIPELINES = {
    "O2TD3": ["offline=td3_bc", "online=o2td3", *REPLAY],
    "O2SAC": ["offline=cql", "online=o2sac", *REPLAY],
    "O2PPO": ["offline=iql", "online=o2ppo", "--data.rollout", "32", "--data.epochs", "2", "--data.batch_size", "16"],
}
# Events that a run of these sizes has in each phase; a kill comes at a random one of them.
EVENTS = {
    "offline": {"update": 55, "write": 200, "replace": 8, "evaluate": 2},
    "reevaluate": {"update": 30, "write": 150, "replace": 5},
    "align": {"update": 30, "write": 200, "replace": 8, "evaluate": 2},
    "online": {"env_step": 90, "update": 40, "write": 400, "replace": 10, "evaluate": 3},
}


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Uninterrupted runs, made when first asked for."""
    killing.import_everything()
    return {"scratch": tmp_path_factory.mktemp("references")}


def reference_of(references: dict[str, Path], name: str) -> Path:
    if name not in references:
        folder = references["scratch"] / name
        argv = ["fit", "--phase", "all", *SIZES, *PIPELINES[name], "--run_dir", str(folder)]
        log = references["scratch"] / f"{name}.log"
        assert killing.run(argv, log) == 0, log.read_text()
        references[name] = folder
    return references[name]


def before(reference: Path, phase: str, folder: Path) -> Path:
    """A copy of ``reference`` of which ``phase`` is still to be done."""
    shutil.copytree(reference, folder, ignore=shutil.ignore_patterns("best.ckpt", "*.state"))
    shutil.rmtree(folder / phase)
    (folder / "summary.json").unlink()
    return folder


def kill_and_resume(references: dict[str, Path], name: str, phase: str, seed: int, tmp_path: Path) -> None:
    reference = reference_of(references, name)
    folder, log = before(reference, phase, tmp_path / "run"), tmp_path / "log"
    chance = random.Random(f"{name} {phase} {seed}")
    event = chance.choice(list(EVENTS[phase]))
    code = killing.run(["resume", str(folder)], log, killing.die_at(event, chance.randint(1, EVENTS[phase][event])))
    assert code in (0, -9), log.read_text()
    assert killing.run(["resume", str(folder)], log) == 0, log.read_text()
    assert killing.differences(reference, folder, [phase]) == [], f"{event}\n{log.read_text()}"


@pytest.mark.parametrize("phase", EVENTS)
def test_a_killed_phase_of_o2td3_ends_with_the_same_bits(references, phase, tmp_path):
    kill_and_resume(references, "O2TD3", phase, 1, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name, phase", [
    (name, phase) for name in PIPELINES for phase in EVENTS if (name, phase) != ("O2PPO", "align")
])  # fmt: skip
def test_every_killed_phase_of_every_method_ends_with_the_same_bits(references, name, phase, seed, tmp_path):
    kill_and_resume(references, name, phase, seed + 2, tmp_path)


PENDULUM = [
    "fit", "--phase", "online", "--data.env_id", "Pendulum-v1", "--data.mix", "none", "--data.dataset", "null",
    "steps.env=70", "checkpoint_every=20", "--data.warmup_steps", "20", "--data.batch_size", "8",
    "--data.eval_every", "40", "--data.eval_episodes", "1", "--model.hidden", "[8,8]",
    "--trainer.log_every_n_steps", "10", "--data.chunk", "8",
]  # fmt: skip


@pytest.mark.parametrize("event, count", [("env_step", 47), ("replace", 7)])
def test_a_run_that_is_killed_twice_ends_with_the_same_bits(event, count, references, tmp_path):
    expected, found, log = tmp_path / "expected", tmp_path / "found", tmp_path / "log"
    assert killing.run([*PENDULUM, "online=td3", "--run_dir", str(expected)], log) == 0, log.read_text()
    start = [*PENDULUM, "online=td3", "--run_dir", str(found)]
    assert killing.run(start, log, killing.die_at(event, count)) == -9, log.read_text()
    killing.run(["resume", str(found)], log, killing.die_at("env_step", 11))
    assert killing.run(["resume", str(found)], log) == 0, log.read_text()
    assert killing.differences(expected, found, ["online"]) == []


def test_a_finished_run_goes_on_when_more_steps_are_asked_for(references, tmp_path):
    folder, longer, log = tmp_path / "run", tmp_path / "longer", tmp_path / "log"
    argv = [*PENDULUM, "online=td3", "--data.env_steps"]
    assert killing.run([*argv, "80", "--run_dir", str(folder)], log) == 0, log.read_text()
    assert killing.run(["resume", str(folder)], log) == 0
    assert "nothing to go on with" in log.read_text()
    assert killing.run(["resume", str(folder), "--trainer.max_steps", "60"], log) == 2
    assert "the online phase ends after --data.env_steps N" in log.read_text()
    more = ["resume", str(folder), "--data.env_steps", "120"]
    assert killing.run(more, log, killing.die_at("env_step", 20)) == -9, log.read_text()
    assert killing.run(["resume", str(folder)], log) == 0, log.read_text()  # the longer run is the one to go on with
    assert killing.run([*argv, "120", "--run_dir", str(longer)], log) == 0, log.read_text()
    weights = [torch.load(run / "online/checkpoints/last.ckpt", weights_only=True) for run in (folder, longer)]
    for name, value in weights[0]["state_dict"].items():
        assert torch.equal(value, weights[1]["state_dict"][name]), name
    assert json.loads((folder / "summary.json").read_text())["env_steps"] == 120


def test_a_phase_without_a_checkpoint_takes_the_length_that_resume_is_given(references, tmp_path):
    folder, log = tmp_path / "run", tmp_path / "log"
    argv = [*PENDULUM, "online=td3", "--trainer.logger.save_dir", str(tmp_path / "logs"), "--run_dir", str(folder)]
    argv[argv.index("--trainer.log_every_n_steps") + 1] = "1"
    assert killing.run(argv, log, killing.die_at("env_step", 19)) == -9, log.read_text()
    assert (tmp_path / "logs/online/metrics.csv").exists()
    assert killing.run(["resume", str(folder), "--trainer.max_steps", "9"], log) == 2
    assert killing.run(["resume", str(folder), "--data.env_steps", "33"], log) == 0, log.read_text()
    assert json.loads((folder / "summary.json").read_text())["env_steps"] == 33


def test_a_phase_that_version_0_1_began_is_refused_in_one_line_and_left_as_it_is(references, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(reference_of(references, "O2TD3"), folder)
    (folder / "online" / "summary.json").unlink()
    last, config = folder / "online" / "checkpoints" / "last.ckpt", folder / "online" / "config.yaml"
    found = torch.load(last, weights_only=True)
    found["state_dict"] = {f"agent.{name.partition('.')[2]}": value for name, value in found["state_dict"].items()}
    torch.save(found, last)
    config.write_text(config.read_text().replace("phases.online.Online", "phases.OnlineTD3"))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}
    assert main(["resume", str(folder)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "version 0.1 began this phase" in said
    assert {path: path.read_bytes() for path in before} == before


def test_a_phase_begun_anew_follows_the_command_that_was_given_last(tmp_path):
    first = {"phase": "all", "phases": ["offline", "reevaluate", "align", "online"], "overrides": [], "options": [],
             "cwd": "/"}  # fmt: skip
    second = {**first, "options": ["--model.discount", "0.9"], "phases": ["reevaluate", "align"]}
    for command in (first, first, second, second):
        add_to_plan(tmp_path, command, {"source": "a.hdf5", "sha256": "1" * 64})
    datasets = {"datasets": {"a.hdf5": "1" * 64}}
    assert read_plan(tmp_path) == [{**first, "phases": ["offline"], **datasets}, {**second, **datasets}]


@pytest.mark.parametrize("change", [
    ["--data.env_id", "Hopper-v5"], ["--data.dataset", "embedded:hopper-medium"], ["--model.discount", "0.9"],
    ["online=o2sac"], ["--seed_everything", "7"], ["--data.batch_size", "32"], ["--config", "other.yaml"],
])  # fmt: skip
def test_what_would_make_another_run_is_refused(change, tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "plan.json").write_text("[]")
    assert main(["resume", str(folder), *change]) == 2
    assert "may change" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["plan.json"]
