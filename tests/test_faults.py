"""What the world does to a run, and what the run leaves behind: a whole checkpoint, one clear line, an exit code."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import killing
import numpy as np
import pytest
import torch
from tensordict import TensorDict

from o2o_lightning.callbacks.checkpoint import StopSignals
from o2o_lightning.callbacks.metrics import MetricsFile
from o2o_lightning.checkpoint import io, side_state
from o2o_lightning.checkpoint.handover import read_handover
from o2o_lightning.checkpoint.run import lock, unlock
from o2o_lightning.cli.main import main
from o2o_lightning.cli.resume import going_on
from o2o_lightning.data.stream import count_chunks, next_boundary
from o2o_lightning.envs.make import make_env
from o2o_lightning.envs.snapshot import can_restore, restore, snapshot
from o2o_lightning.errors import Failure, Interrupted, UserError
from o2o_lightning.replay.interaction import Interaction
from o2o_lightning.replay.ring import Ring

RUN = [
    "fit", "--phase", "online", "online=td3", "--data.env_id", "Pendulum-v1", "--data.mix", "none",
    "--data.dataset", "null", "steps.env=60", "checkpoint_every=20", "--data.warmup_steps", "10",
    "--data.batch_size", "8", "--data.eval_every", "40", "--data.eval_episodes", "1", "--model.hidden", "[8,8]",
    "--trainer.log_every_n_steps", "10", "--data.chunk", "10", "--run_dir",
]  # fmt: skip


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    killing.import_everything()
    folder = tmp_path_factory.mktemp("faults") / "reference"
    log = folder.parent / "log"
    assert killing.run([*RUN, str(folder)], log) == 0, log.read_text()
    return folder


def counted(owner: Any, name: str, at: int, act: Callable[[], Any]) -> Callable[[], None]:
    """For ``prepare``: at the ``at``-th call of ``owner.name``, ``act`` comes first; what it returns replaces it."""

    def prepare() -> None:
        function, left = getattr(owner, name), [at]

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            instead = act() if left[0] == 0 else None
            return function(*args, **kwargs) if instead is None else instead

        setattr(owner, name, wrapper)

    return prepare


def fails_then_resumes(
    reference: Path, tmp_path: Path, prepare: Callable[[], None], code: int, *words: str, clock: int = 20
) -> Path:
    folder, log = tmp_path / "run", tmp_path / "log"
    assert killing.run([*RUN, str(folder)], log, prepare) == code, log.read_text()
    lines = [line for line in log.read_text().splitlines() if line.startswith("o2o: ")]
    assert len(lines) == 1 and all(word in lines[0] for word in words), log.read_text()
    assert "Traceback" not in log.read_text()
    last = folder / "online/checkpoints/last.ckpt"
    assert torch.load(last, weights_only=True)["o2o_progress"]["env_steps"] == clock
    assert read_handover(last).build_actor()
    assert killing.run(["resume", str(folder)], log) == 0, log.read_text()
    assert killing.differences(reference, folder, ["online"]) == []
    return folder


# ---- the disk --------------------------------------------------------------------------------------------------


def test_a_disk_that_fills_up_in_mid_checkpoint_leaves_the_previous_one(reference, tmp_path):
    def fill() -> None:
        # the kernel refuses what goes beyond, in the middle of the file, as a full disk does
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, resource.RLIM_INFINITY))

    from o2o_lightning.callbacks.checkpoint import PhaseCheckpoint

    # saves: best at 0, last at 20, last at 40
    prepare = counted(PhaseCheckpoint, "_write_side_state", 2, fill)
    fails_then_resumes(reference, tmp_path, prepare, 1, "cannot be written", "what was there before is intact")


def test_a_small_file_system_that_fills_up_leaves_the_previous_checkpoint_and_the_run_goes_on(reference, tmp_path):
    from o2o_lightning.callbacks.checkpoint import PhaseCheckpoint

    small, log = tmp_path / "small", tmp_path / "log"
    small.mkdir()
    run = small / "run"

    def fill() -> None:
        space = os.statvfs(small)
        (small / "other").write_bytes(b"x" * (space.f_bavail * space.f_frsize - 6000))

    def scenario() -> None:
        # saves: best at 0, last at 20, last at 40
        prepare = counted(PhaseCheckpoint, "_write_side_state", 2, fill)
        assert killing.run([*RUN, str(run)], log, prepare) == 1
        assert os.statvfs(small).f_blocks * os.statvfs(small).f_frsize == 2 * 2**20
        assert torch.load(run / "online/checkpoints/last.ckpt", weights_only=True)["o2o_progress"]["env_steps"] == 20
        assert killing.run(["resume", str(run)], log) == 1  # it is still full
        (small / "other").unlink()
        assert killing.run(["resume", str(run)], log) == 0
        assert killing.differences(reference, run, ["online"]) == []

    if not killing.on_a_file_system_of_its_own(small, "2m", scenario, log):
        pytest.skip("this kernel lets no user mount a tmpfs in a namespace of his own")
    said = log.read_text()
    assert "No space left on device" in said and "what was there before is intact" in said
    assert "Traceback" not in said, said


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
def test_a_file_that_cannot_be_written_keeps_its_content(number, tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    io.save_atomically(path, {"a": torch.ones(3)})

    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(Failure, match=os.strerror(number)):
        io.save_atomically(path, {"a": torch.zeros(3)})
    assert torch.equal(torch.load(path, weights_only=True)["a"], torch.ones(3))
    assert [found.name for found in tmp_path.iterdir()] == ["last.ckpt"]


def test_side_state_of_another_checkpoint_is_refused(tmp_path):
    checkpoint = tmp_path / "last.ckpt"
    side_state.write(checkpoint, "aaa", 0, {"x": 1})
    os.rename(tmp_path / "last.aaa.state", tmp_path / "last.bbb.state")
    with pytest.raises(UserError, match="belongs to another checkpoint"):
        side_state.read(checkpoint, "bbb", 0)
    with pytest.raises(UserError, match="is missing"):
        side_state.read(checkpoint, "aaa", 0)


def test_a_damaged_side_state_is_one_line_whichever_byte_it_is(tmp_path):
    checkpoint = tmp_path / "last.ckpt"
    side_state.write(checkpoint, "aaa", 0, {"x": [1, {"y": torch.ones(3)}]})
    path = tmp_path / "last.aaa.state" / "rank-0.pt"
    content = path.read_bytes()
    for place in range(0, len(content), 3):
        damaged = bytearray(content)
        damaged[place] ^= 0x55
        path.write_bytes(damaged)
        with contextlib.suppress(UserError):
            side_state.read(checkpoint, "aaa", 0)


def test_metrics_after_the_checkpoint_are_dropped_and_half_a_line_with_them(tmp_path):
    file = MetricsFile(str(tmp_path), "online")
    for step in range(4):
        file.log_metrics({"loss": float(step), **({"late": 1.0} if step == 3 else {})}, step)
    path = tmp_path / "online/metrics.csv"
    path.write_text(path.read_text() + "9.0,")
    again = MetricsFile(str(tmp_path), "online")
    assert again.experiment is not None  # Lightning makes it before it reads the checkpoint
    again.keep(2)
    again.log_metrics({"loss": 7.0}, 2)
    assert path.read_text().split() == ["loss,step", "0.0,0", "1.0,1", "7.0,2"]


def test_metrics_of_another_run_are_kept(tmp_path):
    MetricsFile(str(tmp_path), "online").log_metrics({"loss": 1.0}, 0)
    with pytest.raises(UserError, match="nothing is written over"):
        MetricsFile(str(tmp_path), "online").log_metrics({"loss": 2.0}, 0)
    own = MetricsFile(str(tmp_path), "online")
    own.keep(0)  # killed after its first row, before its first checkpoint
    own.log_metrics({"loss": 3.0}, 0)
    assert (tmp_path / "online/metrics.csv").read_text().split() == ["loss,step", "3.0,0"]


# ---- signals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_finishes_the_chunk_saves_and_says_how_to_go_on(reference, tmp_path, number, code):
    prepare = counted(Interaction, "step", 33, lambda: os.kill(os.getpid(), number))
    words = (number.name, f"o2o resume {tmp_path / 'run'}", "40 env steps")
    fails_then_resumes(reference, tmp_path, prepare, code, *words, clock=40)


def test_the_same_signal_from_two_sides_is_one_and_a_later_one_stops_at_once(monkeypatch):
    signals, clock = StopSignals(), [0.0]
    monkeypatch.setattr("o2o_lightning.callbacks.checkpoint.time.monotonic", lambda: clock[0])
    for clock[0] in (10.0, 11.9):  # to a whole job, and by what has started this process
        signals._note(signal.SIGTERM, None)
    clock[0] = 12.1
    with pytest.raises(Interrupted, match="stopped at once"):
        signals._note(signal.SIGTERM, None)


# ---- two runs on one directory -----------------------------------------------------------------------------------


def test_a_directory_that_is_being_written_is_refused(reference, tmp_path):
    folder, log = tmp_path / "run", tmp_path / "log"
    lock(folder)
    try:
        assert killing.run([*RUN, str(folder)], log) == 2
        assert f"process {os.getpid()} is writing to it" in log.read_text()
        assert sorted(path.name for path in folder.iterdir()) == [".lock"]
    finally:
        unlock(folder)


# ---- numbers that are none -----------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_its_batch(reference, tmp_path):
    import o2o_lightning.methods.td3 as module

    prepare = counted(module, "td_target", 25, lambda: torch.full((8,), math.nan))
    folder = fails_then_resumes(reference, tmp_path, prepare, 1, "update 25", "target", "critic_loss", "online/")
    dump = torch.load(folder / "online/failed_batch.pt", weights_only=True)
    assert dump["update"] == 25 and "target" in dump["wrong"] and dump["batch"]["observation"].shape == (8, 3)


def test_where_a_look_would_wait_the_optimizer_itself_skips_the_step_and_all_after_it(monkeypatch):
    from o2o_lightning.engine import health

    monkeypatch.setattr(health, "readable", lambda loss: False)
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([weight], fused=True)
    record, after = health.ChunkRecord("align"), []
    for update, loss in enumerate((torch.tensor(1.0), torch.tensor(math.nan), torch.tensor(2.0))):
        record.add(update, TensorDict({"reward": loss.expand(2)}, [2]), loss, {"critic_loss": loss})
        weight.grad = loss.expand(3).clone()
        record.admit(loss, optimizer)
        optimizer.step()
        after.append(weight.detach().clone())
    assert not torch.equal(after[0], torch.ones(3))
    assert torch.equal(after[1], after[0]) and torch.equal(after[2], after[0])
    with pytest.raises(Failure, match=r"phase align, update 2: batch\['reward'\], critic_loss: not finite"):
        record.check()


def test_weights_that_are_not_finite_never_reach_a_checkpoint(reference, tmp_path):
    from o2o_lightning.phases.descent import Descent

    descend = Descent.__call__

    def spoil() -> None:
        left = [0]

        def wrapper(self: Descent, loss: Any, counted: bool) -> None:
            descend(self, loss, counted)
            left[0] += counted
            if left[0] == 30 and not counted:  # the last loss before the checkpoint at 40: no later one shows it
                next(self.phase.method.critic.parameters()).data.fill_(math.nan)

        Descent.__call__ = wrapper  # type: ignore[method-assign]

    fails_then_resumes(reference, tmp_path, spoil, 1, "network weights", "not finite")


# ---- the environment -----------------------------------------------------------------------------------------------


def test_an_environment_that_raises_stops_the_run_in_one_line(reference, tmp_path):
    from gymnasium.envs.classic_control.pendulum import PendulumEnv

    def crash(*_: Any) -> None:
        raise RuntimeError("the gripper is stuck")

    prepare = counted(Interaction, "step", 35, lambda: setattr(PendulumEnv, "step", crash))
    fails_then_resumes(reference, tmp_path, prepare, 1, "Pendulum-v1", "the gripper is stuck", "step 34 of episode 0")


def test_an_environment_that_returns_nan_teaches_nothing(reference, tmp_path):
    from gymnasium.envs.classic_control.pendulum import PendulumEnv

    broken = (np.full(3, np.nan, np.float32), 0.0, False, False, {})
    prepare = counted(Interaction, "step", 35, lambda: setattr(PendulumEnv, "step", lambda *_: broken))
    words = "environment Pendulum-v1: step 35 of an episode", "value 0 of its observation is NaN"
    fails_then_resumes(reference, tmp_path, prepare, 1, *words)


# ---- snapshots -----------------------------------------------------------------------------------------------------


def roll(env: gym.Env[Any, Any], actions: list[Any]) -> list[Any]:
    seen = []
    for action in actions:
        observation, reward, terminated, truncated, _ = env.step(action)
        seen.append((observation.tobytes(), float(reward), terminated, truncated))
        if terminated or truncated:
            seen.append(env.reset()[0].tobytes())
    return [*seen, env.reset()[0].tobytes(), *(env.step(action)[0].tobytes() for action in actions[:5])]


@pytest.mark.parametrize("env_id", [
    "Pendulum-v1", "MountainCarContinuous-v0", "Hopper-v4", "Hopper-v5", "Ant-v5", "PointMaze_UMaze-v3",
    "AntMaze_UMaze-v4",
])  # fmt: skip
def test_a_restored_environment_goes_on_bit_for_bit(env_id):
    if "Maze" in env_id:
        pytest.importorskip("gymnasium_robotics")
    original, other = make_env(env_id), make_env(env_id)
    chance = np.random.default_rng(0)
    actions = [chance.uniform(-1, 1, original.action_space.shape).astype(np.float32) for _ in range(240)]
    original.reset(seed=3)
    other.reset(seed=4)
    for action in actions[:37]:
        if any(original.step(action)[2:4]):
            original.reset()
    restore(other, snapshot(original))
    assert roll(original, actions[37:]) == roll(other, actions[37:])
    assert can_restore(lambda: make_env(env_id))


class Hidden(gym.Env[Any, Any]):
    """Keeps its state where no snapshot looks, as an external simulator does."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    class _Far:
        position = 0.0

    def __init__(self) -> None:
        self.far = self._Far()

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.far.position = float(self.np_random.uniform())
        return np.array([self.far.position], np.float32), {}

    def step(self, action: Any) -> Any:
        self.far.position += float(action[0])
        return np.array([self.far.position], np.float32), 0.0, False, False, {}


def test_an_environment_that_hides_its_state_restarts_its_episode_and_says_so(capsys):
    gym.register("Hidden-v0", Hidden, max_episode_steps=50)

    def run() -> Interaction:
        return Interaction(lambda: make_env("Hidden-v0"), Ring(30, 1, 1), seed=5)

    assert not can_restore(lambda: make_env("Hidden-v0"))
    first = run()
    for _ in range(7):
        first.step(lambda observation: np.array([0.1], np.float32))
    state = first.state()
    assert "its state cannot be saved" in capsys.readouterr().err
    resumed, again = run(), run()
    for interaction in (resumed, again):
        interaction.load_state(state)
        assert interaction.episodes == 1 and interaction.episode_length == 0 and len(interaction.buffer) == 7
    newest = resumed.buffer.gather(torch.arange(7))["next"]
    assert newest["truncated"].tolist() == [False] * 6 + [True] and not newest["terminated"].any()
    assert np.array_equal(resumed.observation, again.observation)


def test_a_full_buffer_comes_back_row_by_row_and_a_larger_one_takes_it_oldest_first():
    def filled(capacity: int, steps: range) -> Ring:
        buffer = Ring(capacity, 1, 1)
        for i in steps:
            zero = np.zeros(1, np.float32)
            buffer.add(zero, zero, float(i), zero, False, False)
        return buffer

    state = filled(5, range(8)).state()
    same, larger = Ring(5, 1, 1), Ring(9, 1, 1)
    same.load_state(state)
    larger.load_state(state)
    assert same.gather(torch.arange(5))["reward"].tolist() == [5, 6, 7, 3, 4] and same.cursor == 3
    assert larger.gather(torch.arange(5))["reward"].tolist() == [3, 4, 5, 6, 7] and larger.cursor == 5


def test_chunks_from_any_clock_are_counted_as_they_come():
    for total, chunk, every in ((100, 8, 25), (97, 16, 0), (50, 7, 7), (30, 40, 100)):
        for start in range(total):
            clock, chunks = start, 0
            while clock < total:
                clock += min(chunk, next_boundary(clock, total, every) - clock)
                chunks += 1
            assert count_chunks(total, chunk, every, start=start) == chunks


def test_resuming_what_is_no_run_says_so(tmp_path, capsys):
    assert main(["resume", str(tmp_path / "nothing")]) == 2
    assert "no run of o2o is in it" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# ---- loggers -------------------------------------------------------------------------------------------------------


def test_loggers_are_told_where_a_run_goes_on():
    path = "lightning.pytorch.loggers"
    board = {"class_path": f"{path}.TensorBoardLogger", "init_args": {"save_dir": "s", "version": ""}}
    wandb = {"class_path": f"{path}.WandbLogger", "init_args": {"project": "p"}}
    told = going_on([board, wandb, {"class_path": f"{path}.CSVLogger"}], 40, ["", "abc12", None])
    assert told[0] == {**board, "dict_kwargs": {"purge_step": 41}}
    assert told[1]["init_args"] == {"project": "p", "id": "abc12"} and told[1]["dict_kwargs"] == {"resume": "allow"}
    assert told[2] == {"class_path": f"{path}.CSVLogger"}
    assert going_on(False, 40, []) is False and going_on(True, 40, []) is True


def test_tensorboard_shows_each_row_of_a_resumed_run_once(reference, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    killing.import_everything()
    folder, log = tmp_path / "run", tmp_path / "log"
    argv = [*RUN, str(folder), "logger=tensorboard"]
    assert killing.run(argv, log, killing.die_at("env_step", 57)) == -9, log.read_text()
    assert killing.run(["resume", str(folder)], log) == 0, log.read_text()
    shown = EventAccumulator(str(folder / "online")).Reload()
    rows = [line.split(",") for line in (reference / "online/metrics.csv").read_text().splitlines()]
    for name, shown_as in (("critic_loss", "loss/critic"), ("return_mean", "eval/return_mean")):
        column, step = rows[0].index(name), rows[0].index("step")
        expected = [int(row[step]) for row in rows[1:] if row[column]]
        assert [event.step for event in shown.Scalars(shown_as)] == expected
