"""Environments in processes of their own: seeds step and are evaluated side by side, with the bits of a run without."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import killing
import numpy as np
import pytest
import torch

from o2o_lightning.cli.main import main
from o2o_lightning.envs.make import UnitAction, make_env
from o2o_lightning.envs.remote import RemoteEnv
from o2o_lightning.errors import Failure
from o2o_lightning.replay.interaction import Interaction
from o2o_lightning.replay.ring import Ring

AWAY = ["--data.env_process", "true"]


def pendulum_env() -> UnitAction:
    return make_env("Pendulum-v1")


def hopper_env() -> UnitAction:
    return make_env("Hopper-v5")


def no_env() -> UnitAction:
    return make_env("NoSuch-v0")


class Leaving(gym.Wrapper[Any, Any, Any, Any]):
    """Starts a process of its own, and leaves a file when it is closed."""

    def __init__(self, env: Any, folder: str) -> None:
        super().__init__(env)
        self.folder = Path(folder)
        own = multiprocessing.get_context("spawn").Process(target=nothing)
        own.start()
        own.join()
        (self.folder / f"started with {own.exitcode}").touch()

    def close(self) -> None:
        (self.folder / "closed").touch()
        super().close()


def leaving_env(folder: str) -> Any:
    env = make_env("Pendulum-v1")
    env.env = Leaving(env.env, folder)
    return env


def nothing() -> None:
    """Nothing else is done meanwhile."""


def played(interaction: Interaction, steps: int, seed: int = 0) -> dict[str, Any]:
    """The state after so many steps of random actions."""
    generator = np.random.default_rng(seed)
    for _ in range(steps):
        interaction.step(lambda _: generator.uniform(-1.0, 1.0, len(interaction.make().low)).astype(np.float32))
    return interaction.state()


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else bool(a == b)


@pytest.fixture(scope="module")
def away() -> Iterator[Interaction]:
    """Hopper in another process."""
    found = Interaction(hopper_env, Ring(200, 11, 3), 5, nothing)
    yield found
    found.env.close()


def test_an_environment_over_there_has_the_bits_of_one_here(away: Interaction) -> None:
    assert isinstance(away.env, RemoteEnv) and away.name == "Hopper-v5"
    here = Interaction(hopper_env, Ring(200, 11, 3), 5)
    found, expected = played(away, 60), played(here, 60)
    assert expected["counters"][2] > 0 and equal(found, expected)
    assert equal(away.env.simulator_state()["qpos"].tolist(), here.env.simulator_state()["qpos"].tolist())
    played(away, 20, seed=1)  # somewhere else
    away.load_state(expected)
    assert equal(played(away, 60, seed=2), played(here, 60, seed=2))


def test_what_an_environment_over_there_refuses_is_said_as_here(away: Interaction) -> None:
    with pytest.raises(Failure, match=r"Hopper-v5: step \d+ of an episode: the policy's action is not finite\."):
        away.step(lambda _: np.full(3, np.nan, np.float32))
    away.step(lambda _: np.zeros(3, np.float32))  # it goes on


def test_an_environment_whose_process_ends_is_one_line_and_closes_twice() -> None:
    interaction = Interaction(pendulum_env, Ring(20, 3, 1), 0, nothing)
    played(interaction, 3)
    os.kill(interaction.env._child.process.pid, signal.SIGKILL)
    with pytest.raises(
        Failure, match=r"the environment process ended unexpectedly \(exit code -9.*Check the simulator"
    ):
        played(interaction, 3)
    interaction.env.close()
    interaction.env.close()


# ---- through the command line ------------------------------------------------------------------------------------


def meeting(folder: Path, seeds: int, *more: str, **kwargs: int) -> list[str]:
    (folder / "doors").mkdir()
    given = json.dumps({"folder": str(folder / "doors"), "seeds": seeds, **kwargs})
    return [
        "fit", "--phase", "online", "online=td3", "experiment=scratch", "--data.env_id", "meeting:Meeting-v0",
        "--data.env_kwargs", given, "--data.env_steps", "20", "--data.warmup_steps", "4", "--data.batch_size", "4",
        "--model.hidden", "[8]", "--data.eval_episodes", "1", "--data.eval_every", "10", *AWAY,
        "--run_dir", str(folder / "run"), *more,
    ]  # fmt: skip


def test_seeds_step_and_are_evaluated_side_by_side(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    # a step of training's environment, and of each evaluation's, ends only when the others have come to theirs
    assert main(meeting(tmp_path, 3, "seeds=3")) == 0, capfd.readouterr().err
    assert len([*(tmp_path / "doors").iterdir()]) == 12  # of each seed: training, evaluation, two that try a snapshot
    curves = [json.loads((tmp_path / f"run/seed-{i}/summary.json").read_text())["score"]["curve"] for i in range(3)]
    assert all([point[0] for point in curve] == [0, 10, 20] for curve in curves)


def test_a_simulator_that_ends_its_process_stops_its_run_in_one_line(tmp_path: Path, capfd: Any) -> None:
    assert main(meeting(tmp_path, 1, end_at=9)) == 1
    assert "the environment process ended unexpectedly (exit code 7). Check the simulator" in capfd.readouterr().err


RUN = [
    "fit", "--phase", "all", "steps.offline=12", "steps.reevaluate=8", "steps.align=8", "steps.env=24",
    "checkpoint_every=6", "--data.eval_every_updates", "10", "--data.eval_every", "8", "--data.eval_episodes", "2",
    "--trainer.log_every_n_steps", "1", "--data.chunk", "4", "--data.batch_size", "8",
]  # fmt: skip
SAC = ["offline=bc", "online=o2sac", "--model.hidden", "[8,8]", "--model.critic_hidden", "[8,8]"]
SAC += ["--data.warmup_steps", "8"]
PPO = ["offline=bc", "online=o2ppo", "phases=[offline,online]", "--data.rollout", "8", "--data.epochs", "2"]


def written(folder: Path) -> Iterator[tuple[Path, Any]]:
    """What a run has learned: rows, weights, scores."""
    for file in sorted(folder.rglob("metrics.csv")):
        with file.open(newline="") as lines:
            yield file.relative_to(folder), [*csv.DictReader(lines)]
    for file in sorted(folder.rglob("last.ckpt")):
        yield file.relative_to(folder), torch.load(file, weights_only=True)["state_dict"]
    for file in sorted(folder.rglob("seed-*/*/summary.json")):
        yield file.relative_to(folder), json.loads(file.read_text())["score"]


def test_seeds_side_by_side_end_with_the_bits_of_seeds_in_turn_also_after_a_kill(pendulum: str, tmp_path: Path) -> None:
    killing.import_everything()
    log, line = tmp_path / "log", [*RUN, *SAC, "--data.dataset", pendulum, "seeds=2"]
    turn, beside, killed = (tmp_path / name for name in ("turn", "beside", "killed"))
    assert killing.run([*line, "--run_dir", str(turn)], log) == 0, log.read_text()
    assert killing.run([*line, *AWAY, "--run_dir", str(beside)], log) == 0, log.read_text()
    expected = dict(written(turn))
    assert len(expected) == 2 * 3 * 4 and equal(dict(written(beside)), expected)
    code = killing.run([*line, *AWAY, "--run_dir", str(killed)], log, killing.die_at("replace", 60))
    assert code == -9, log.read_text()
    assert killing.run(["resume", str(killed)], log) == 0, log.read_text()
    for seed in (0, 1):
        phases = ["offline", "reevaluate", "align", "online"]
        assert killing.differences(beside / f"seed-{seed}", killed / f"seed-{seed}", phases) == []


def test_a_rollouts_environments_step_side_by_side_with_the_same_bits(pendulum: str, tmp_path: Path) -> None:
    line = [*RUN, *PPO, "--data.dataset", pendulum, "--data.num_envs", "2"]
    assert main([*line, "--run_dir", str(tmp_path / "turn")]) == 0
    assert main([*line, *AWAY, "--run_dir", str(tmp_path / "beside")]) == 0
    found, expected = dict(written(tmp_path / "beside")), dict(written(tmp_path / "turn"))
    assert len(expected) == 4 and equal(found, expected)
