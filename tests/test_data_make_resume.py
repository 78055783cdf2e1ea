"""A making that is killed and given again ends with the bytes of one that was not."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import killing
import numpy as np
import pytest

from o2o_lightning.data.hdf5 import read_hdf5
from o2o_lightning.data.raw import validate
from o2o_lightning.recording import making

TRAINING = [
    "data", "make", "--env", "Hopper-v5", "--level", "medium", "--transitions", "150", "--stop_return", "-1000",
    "--train_steps", "300", "--data.batch_size", "8", "--data.warmup_steps", "50", "--data.eval_every", "40",
    "--data.eval_episodes", "1", "--model.hidden", "[8,8]", "--model.critic_hidden", "[8,8]", "checkpoint_every=20",
    "--data.chunk", "10", "--output",
]  # fmt: skip
REPLAY = [*TRAINING[:5], "medium-replay", *TRAINING[8:]]
RANDOM = ["data", "make", "--env", "Hopper-v5", "--level", "random", "--transitions", "300", "--output"]


def small_chunks() -> None:
    making.CHUNK_ROWS = 64


def dies(event: str, count: int) -> Callable[[], None]:
    def prepare() -> None:
        small_chunks()
        if event == "link":
            count_link(count)
        else:
            killing.die_at(event, count)()

    return prepare


def count_link(count: int) -> None:
    """SIGKILL just before (1) or just after (2) the output takes its name."""
    link = os.link

    def wrapper(*args: Any) -> None:
        if count == 2:
            link(*args)
        os.kill(os.getpid(), signal.SIGKILL)

    os.link = wrapper  # type: ignore[assignment]


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> Callable[[list[str]], bytes]:
    killing.import_everything()
    folder, made = tmp_path_factory.mktemp("references"), {}

    def reference(argv: list[str]) -> bytes:
        name = argv[5]
        if name not in made:
            path, log = folder / f"{name}.hdf5", folder / f"{name}.log"
            assert killing.run([*argv, str(path)], log, small_chunks) == 0, log.read_text()
            made[name] = path.read_bytes()
        return made[name]

    return reference


# a Hopper run of 80 steps and 150 rows in chunks of 64, and what happens in it
@pytest.mark.parametrize("argv, event, count", [
    (RANDOM, "env_step", 150), (RANDOM, "link", 2), (TRAINING, "env_step", 47), (REPLAY, "evaluate", 4),
])  # fmt: skip
def test_a_killed_making_ends_with_the_same_bytes(argv, event, count, references, tmp_path):
    path, log = tmp_path / "a.hdf5", tmp_path / "log"
    assert killing.run([*argv, str(path)], log, dies(event, count)) == -9, log.read_text()
    assert killing.run([*argv, str(path)], log, small_chunks) == 0, log.read_text()
    assert path.read_bytes() == references(argv)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.hdf5", "log"]


@pytest.mark.slow
@pytest.mark.parametrize("argv, event, count", [
    *((TRAINING, "replace", count) for count in range(1, 28)), (TRAINING, "env_step", 81), (TRAINING, "env_step", 170),
    (TRAINING, "write", 150), (TRAINING, "link", 1), (REPLAY, "update", 20), (RANDOM, "replace", 5),
])  # fmt: skip
def test_a_making_that_is_killed_anywhere_ends_with_the_same_bytes(argv, event, count, references, tmp_path):
    test_a_killed_making_ends_with_the_same_bytes(argv, event, count, references, tmp_path)


def test_a_signal_stops_training_in_good_order(references, tmp_path):
    path, log = tmp_path / "a.hdf5", tmp_path / "log"

    def prepare() -> None:
        from o2o_lightning.replay.interaction import Interaction

        step = Interaction.step

        def wrapper(self: Any, explore: Any) -> None:
            step(self, explore)
            if self.steps == 33:
                os.kill(os.getpid(), signal.SIGTERM)

        small_chunks()
        Interaction.step = wrapper  # type: ignore[method-assign]

    assert killing.run([*TRAINING, str(path)], log, prepare) == 143, log.read_text()
    assert "Give the same command again to go on" in log.read_text()
    assert killing.run([*TRAINING, str(path)], log, small_chunks) == 0, log.read_text()
    assert path.read_bytes() == references(TRAINING)


def test_an_environment_that_hides_its_state_goes_on_with_a_new_episode(tmp_path):
    path, log = tmp_path / "a.hdf5", tmp_path / "log"

    def hides() -> None:
        from o2o_lightning.envs import make

        small_chunks()
        make.can_restore = lambda make: False

    def hides_and_dies() -> None:
        hides()
        killing.die_at("env_step", 150)()

    argv = ["data", "make", "--env", "Pendulum-v1", "--level", "random", "--transitions", "300", "--output", str(path)]
    assert killing.run(argv, log, hides_and_dies) == -9, log.read_text()
    assert killing.run(argv, log, hides) == 0, log.read_text()
    assert "its state was not saved" in log.read_text()
    validate(read_hdf5(path))
    with h5py.File(path) as file:
        # two whole chunks were there; then a new episode, of 200 steps
        assert np.flatnonzero(file["timeouts"]).tolist() == [127, 299]
        assert not np.array_equal(file["next_observations"][127], file["observations"][128])


def test_a_damaged_chunk_is_named(tmp_path, capsys):
    from o2o_lightning.cli.main import main

    path, log = tmp_path / "a.hdf5", tmp_path / "log"
    assert killing.run([*RANDOM, str(path)], log, dies("env_step", 150)) == -9
    chunk = Path(f"{path}.making/rollouts/000000000064.pt")
    chunk.write_bytes(chunk.read_bytes()[:100])
    assert main([*RANDOM, str(path)]) == 2
    assert str(chunk) in capsys.readouterr().err
