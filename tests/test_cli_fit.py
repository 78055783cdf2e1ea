"""`o2o fit` end to end on small real data: all phases at once, one by one, and what they leave behind."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
import pytest
import torch
import yaml

O2O = Callable[..., int]
PHASES = ("offline", "reevaluate", "align", "online")
# --data.chunk 7 divides none of the counts; the file is named from the folder that the command runs in
DATA = ("--data.dataset", "data/pendulum.hdf5", "--data.batch_size", 16, "--data.chunk", 7, "--data.eval_episodes", 1)
SMALL = (*DATA, "--trainer.accelerator", "cpu", "--trainer.log_every_n_steps", 5, "--model.hidden", "[16,16]")
ONLINE = ("--data.env_steps", 33, "--data.warmup_steps", 10, "--data.eval_every", 10)
COUNTS = ("steps.offline=20", "steps.reevaluate=15", "steps.align=25")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, pendulum: str) -> Path:
    """The folder that every command of this file runs in."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "data").mkdir()
    shutil.copy(pendulum, folder / "data" / "pendulum.hdf5")
    return folder


@pytest.fixture(autouse=True)
def at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)


@pytest.fixture(scope="module")
def everything(home: Path) -> Path:
    """A run of all phases."""
    from o2o_lightning.cli.main import main

    before = os.getcwd()
    os.chdir(home)
    try:
        line = ["fit", "--phase", "all", *COUNTS, *SMALL, *ONLINE, "--run_dir", "runs/all", "--seed_everything", 3]
        assert main([*map(str, line), "--model.actor_lr", "5e-4"]) == 0
    finally:
        os.chdir(before)
    return home / "runs" / "all"


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def arguments(phase_folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((phase_folder / "config.yaml").read_text())["model"]["init_args"]
    method = found.pop("method")
    return found | method["init_args"]  # as --model.x sets them


def test_a_run_leaves_everything_in_its_directory(everything: Path) -> None:
    files = {str(path.relative_to(everything)) for path in everything.rglob("*") if path.is_file()}
    files = {re.sub(r"last\.\w+\.state", "last.state", name) for name in files}
    phase_files = {"config.yaml", "metrics.csv", "summary.json", "checkpoints/last.ckpt"}
    phase_files |= {"checkpoints/last.state/rank-0.pt"}
    expected = {f"{phase}/{name}" for phase in PHASES for name in phase_files}
    evaluated = {f"{phase}/checkpoints/best.ckpt" for phase in PHASES if phase != "reevaluate"}
    assert files == expected | evaluated | {"config.yaml", "manifest.json", "summary.json", "plan.json", ".lock"}


def test_counts_are_exact_whatever_the_chunk(everything: Path) -> None:
    found = {phase: summary(everything / phase) for phase in PHASES}
    assert [found[phase]["steps"] for phase in PHASES] == [20, 15, 25, 4 * (33 - 10)]
    assert [found[phase]["env_steps"] for phase in PHASES] == [0, 0, 0, 33]
    assert [point[0] for point in found["online"]["score"]["curve"]] == [0, 10, 20, 30, 33]


def test_the_summary_has_the_keys_that_other_programs_rely_on(everything: Path) -> None:
    keys = {"phase", "algorithm", "env_id", "dataset", "seed", "steps", "env_steps", "eval_env_steps", "seconds"}
    keys |= {"versions", "score"}
    whole = summary(everything)
    assert keys | {"phases"} <= set(whole) and list(whole["phases"]) == list(PHASES)
    assert all(keys <= set(facts) for facts in whole["phases"].values())
    assert (whole["phase"], whole["algorithm"], whole["seed"]) == ("online", "o2td3", 3)
    assert (whole["env_id"], whole["dataset"]) == ("Pendulum-v1", "data/pendulum.hdf5")
    assert set(whole["score"]) == {"offline", "aligned", "final", "best", "min_first_tenth", "lowest_early", "curve"}
    assert whole["seconds"] == pytest.approx(sum(facts["seconds"] for facts in whole["phases"].values()), abs=0.01)
    # Pendulum has no reference score, so scores are returns and the curve's third column is empty
    curve = whole["score"]["curve"]
    assert all(score is None and return_mean < 0 for _, return_mean, score in curve)
    assert whole["score"]["final"] == curve[-1][1] and whole["score"]["best"] == max(point[1] for point in curve)


def test_an_option_reaches_the_phases_that_know_it_and_only_those(everything: Path) -> None:
    found = {phase: arguments(everything / phase) for phase in PHASES}
    assert {phase: found[phase].get("actor_lr") for phase in PHASES} == {
        "offline": 5e-4, "reevaluate": None, "align": 5e-4, "online": 5e-4
    }  # fmt: skip
    assert found["reevaluate"]["hidden"] == [16, 16] and "hidden" not in found["align"]


def test_the_written_configuration_names_no_absolute_path(everything: Path) -> None:
    for phase in PHASES:
        text = (everything / phase / "config.yaml").read_text()
        assert str(everything) not in text and "runs/all" not in text
        assert "$RUN_DIR" in text
    assert (everything / "config.yaml").read_text() == (everything / "online" / "config.yaml").read_text()


def test_checkpoints_hold_tensors_and_plain_values(everything: Path) -> None:
    for path in everything.rglob("*.ckpt"):
        assert torch.load(path, weights_only=True)["o2o"]["env_id"] == "Pendulum-v1"


def test_phases_one_by_one_give_the_same_bits(everything: Path, o2o: O2O) -> None:
    options = {
        "offline": ("--trainer.max_steps", 20),
        "reevaluate": ("--trainer.max_steps", 15),
        "align": ("--trainer.max_steps", 25),
        "online": ONLINE,
    }
    start: tuple[str, ...] = ()
    for phase in PHASES:
        known = SMALL[:-2] if phase == "align" else SMALL
        rate = () if phase == "reevaluate" else ("--model.actor_lr", "5e-4")
        line = ("--phase", phase, *known, *options[phase], *rate, *start, "--run_dir", "runs/each")
        assert o2o("fit", *line, "--seed_everything", 3) == 0
        start = ("--model.init_from", f"runs/each/{phase}/checkpoints/last.ckpt")
        assert Path(f"runs/each/{phase}/metrics.csv").read_bytes() == (everything / phase / "metrics.csv").read_bytes()
    each, whole = summary(Path("runs/each")), summary(everything)
    assert list(each["phases"]) == list(PHASES) and each["score"] == whole["score"]


def test_another_seed_gives_other_bits_and_the_same_seed_the_same(everything: Path, o2o: O2O) -> None:
    line = ("fit", "--phase", "offline", *SMALL, "--trainer.max_steps", 20, "--model.actor_lr", "5e-4")
    for seed in (3, 4):
        assert o2o(*line, "--seed_everything", seed, "--run_dir", f"runs/seed{seed}") == 0
    metrics = [Path(f"runs/seed{seed}/offline/metrics.csv").read_bytes() for seed in (3, 4)]
    assert metrics[0] == (everything / "offline" / "metrics.csv").read_bytes() != metrics[1]


@pytest.mark.parametrize("chunk", [1, 16, 64])
def test_an_alignment_makes_exactly_37_updates(chunk: int, everything: Path, o2o: O2O) -> None:
    start = ("--model.init_from", everything / "reevaluate" / "checkpoints" / "last.ckpt")
    line = ("fit", "--phase", "align", *DATA, *start, "--trainer.max_steps", 37, "--data.chunk", chunk)
    assert o2o(*line, "--run_dir", f"runs/chunk{chunk}") == 0
    assert summary(Path(f"runs/chunk{chunk}/align"))["steps"] == 37
    checkpoint = torch.load(f"runs/chunk{chunk}/align/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 37 == checkpoint["optimizer_states"][0]["state"][0]["step"]


def test_a_written_configuration_repeats_the_phase(everything: Path, o2o: O2O) -> None:
    start = ("--model.init_from", everything / "reevaluate" / "checkpoints" / "last.ckpt")
    assert (
        o2o("fit", "--phase", "align", "--config", "runs/all/align/config.yaml", *start, "--run_dir", "runs/again") == 0
    )
    assert Path("runs/again/align/metrics.csv").read_bytes() == (everything / "align" / "metrics.csv").read_bytes()


def test_what_a_run_says_is_short_and_its_own(o2o: O2O, capfd: pytest.CaptureFixture[str]) -> None:
    line = ("fit", "--phase", "all", *COUNTS, *SMALL, *ONLINE, "--run_dir", "runs/said")
    assert o2o(*line) == 0
    out, err = capfd.readouterr()
    assert out == ""
    own = [
        r"hyper-parameters: row 'medium', guessed from the dataset's name; another with tier=expert",
        r"(offline|align) +\d+/\d+ updates  .*(now|best) -[\d.]+ .* upd/s",
        r"online +\d+/33 env steps  .*now -[\d.]+  best -[\d.]+ .* upd/s",
        r"(offline|reevaluate|align|online): done, runs/said/\w+/checkpoints/last.ckpt",
        r"reevaluate: the critic says -?[\d.]+ of what π_off does, which earns -[\d.]+, discounted",
        r"π_off -[\d.]+ → π_on -[\d.]+ → lowest early -[\d.]+ → best -[\d.]+ → final -[\d.]+ \(return\); 33 env.*",
        r"trials of the actor: \d+ won, \d+ lost, \d+ undecided",
        r"the policy to take: runs/said/online/checkpoints/best.ckpt(; π_off scored higher.*)?",
    ]
    lines = err.splitlines()
    assert [text for text in lines if not any(re.fullmatch(pattern, text) for pattern in own)] == []
    assert lines[0].startswith("hyper-parameters") and len(lines) == 1 + 1 + 1 + 1 + 5 + 4 + 3
    chosen = ("fit", "--phase", "offline", "tier=medium", *SMALL, "--trainer.max_steps", 2, "--run_dir", "runs/tier")
    assert o2o(*chosen) == 0
    assert "hyper-parameters" not in capfd.readouterr().err


def test_direct_fine_tuning_starts_from_the_offline_phase(everything: Path, o2o: O2O) -> None:
    start = ("--model.init_from", everything / "offline" / "checkpoints" / "last.ckpt")
    assert o2o("fit", "--phase", "online", "online=td3", *SMALL, *ONLINE, *start, "--run_dir", "runs/direct") == 0
    found = summary(Path("runs/direct/online"))
    # the same policy, evaluated from the same start states, as at the end of the offline phase
    assert found["score"]["curve"][0][1] == summary(everything / "offline")["score"]["final"]
    with (Path("runs/direct/online/metrics.csv")).open() as file:
        assert not {"divergence", "multiplier"} & set(next(csv.reader(file)))


def test_learning_from_scratch_needs_an_environment_only(o2o: O2O) -> None:
    line = ("fit", "--phase", "all", "online=td3", "experiment=scratch", "--data.env_id", "Pendulum-v1", *SMALL[6:])
    assert o2o(*line, *ONLINE, "--data.batch_size", 16, "--data.eval_episodes", 1, "--run_dir", "runs/scratch") == 0
    found = summary(Path("runs/scratch"))
    assert (found["phase"], found["dataset"], found["env_steps"], list(found["phases"])) == (
        "online", None, 33, ["online"]
    )  # fmt: skip


def test_a_policy_of_another_family_is_cloned_on_the_way(o2o: O2O, capsys: pytest.CaptureFixture[str]) -> None:
    line = ("fit", "--phase", "all", "offline=cql", *COUNTS, "steps.clone=20", *DATA, "--data.env_steps", 12)
    assert o2o(*line, "--data.warmup_steps", 6, "--run_dir", "runs/cloned") == 0
    assert (
        "clone: the offline policy is a squashed Gaussian, O2TD3 needs a deterministic one" in capsys.readouterr().err
    )
    assert list(summary(Path("runs/cloned"))["phases"]) == ["offline", "clone", "reevaluate", "align", "online"]


def test_a_goal_environments_dictionary_observations_are_flattened(o2o: O2O, home: Path) -> None:
    robotics = pytest.importorskip("gymnasium_robotics")
    gym.register_envs(robotics)
    env = gym.make("PointMaze_UMaze-v3", max_episode_steps=20)
    env.action_space.seed(0)
    rows: list[tuple[Any, ...]] = []
    for episode in range(10):
        observation, _ = env.reset(seed=episode)
        truncated = False
        while not truncated:
            action = env.action_space.sample()
            successor, reward, terminated, truncated, _ = env.step(action)
            flat = np.concatenate([observation["observation"], observation["desired_goal"]])
            rows.append((flat, action, reward, terminated, truncated))
            observation = successor
    env.close()
    with h5py.File(home / "maze.hdf5", "w") as file:
        names = ("observations", "actions", "rewards", "terminals", "timeouts")
        for name, values in zip(names, zip(*rows, strict=True), strict=True):
            file[name] = np.array(values, np.bool_ if name in ("terminals", "timeouts") else np.float32)
        file["metadata/env_id"], file["metadata/obs_layout"] = "PointMaze_UMaze-v3", "observation,desired_goal"
    options = ("--data.dataset", "maze.hdf5", *DATA[2:], *SMALL[8:], "--data.env_steps", 12, "--data.warmup_steps", 4)
    assert o2o("fit", "--phase", "all", *COUNTS, *options, "--run_dir", "runs/maze") == 0
    found = summary(Path("runs/maze"))
    assert (found["env_id"], found["env_steps"], found["steps"]) == ("PointMaze_UMaze-v3", 12, 32)
    actor = torch.load("runs/maze/online/checkpoints/last.ckpt", weights_only=True)["o2o"]["actor"]
    assert (actor["observation_dim"], actor["action_dim"]) == (6, 2)


def test_a_phase_that_the_method_leaves_out_says_so_and_writes_nothing(
    o2o: O2O, capsys: pytest.CaptureFixture[str]
) -> None:
    assert o2o("fit", "--phase", "align", "online=o2ppo", "--run_dir", "runs/none") == 0
    assert capsys.readouterr().err.startswith("align: ") and not Path("runs/none").exists()
