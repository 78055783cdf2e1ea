"""TorchRL's buffer at any moment of a run: what it shows, saves and writes is the memory that training reads."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import lightning as L
import numpy as np
import pytest
import torch
from conftest import HIDDEN, Fit, Run
from data_files import env_of, raw_of
from lightning.pytorch.callbacks import Callback
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, ReplayBuffer

from o2o_lightning.cli.lightning import Built
from o2o_lightning.data.build import build_store
from o2o_lightning.data.cloning import CloneData
from o2o_lightning.data.module import OfflineData
from o2o_lightning.data.online import OnlineData
from o2o_lightning.errors import UserError
from o2o_lightning.methods.bc import BC
from o2o_lightning.methods.o2 import td3
from o2o_lightning.phases import Align, Offline, Online
from o2o_lightning.replay.buffer import Replay
from o2o_lightning.replay.ring import Ring
from o2o_lightning.replay.store import TransitionStore

ROWS = 60 * 8  # of the Pendulum dataset


class At(Callback):
    """Calls ``look(data, phase)`` once the online phase has made ``env_steps``."""

    def __init__(self, env_steps: int, look: Callable[[Any, Any], None]) -> None:
        self.env_steps, self.look, self.looked = env_steps, look, 0

    def on_train_batch_end(self, trainer: L.Trainer, phase: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if phase.env_steps >= self.env_steps and not self.looked:
            self.looked += 1
            self.look(trainer.datamodule, phase)  # type: ignore[attr-defined]


def midway(fit: Fit, chain: dict[str, Run], dataset: str, look: Callable[[Any, Any], None], **options: Any) -> Run:
    """An online phase of 12 steps in chunks of 3, looked at after 6."""
    settings = {"env_steps": 12, "warmup_steps": 0, "batch_size": 32, "eval_episodes": 1, "chunk": 3, **options}
    callback = At(6, look)
    start = str(chain["align"].checkpoint)
    data = lambda: OnlineData(dataset=dataset, **settings)  # noqa: E731
    run = fit(lambda: Online(td3.Online(), start), data, callbacks=[callback])
    assert callback.looked == 1
    return run


def same(one: TensorDict, two: TensorDict) -> bool:
    return bool((one == two).all()) and set(one.keys(True, True)) == set(two.keys(True, True))


def half(rows: int = 30, steps: int = 0, capacity: int = 10) -> tuple[Replay, TransitionStore, Ring]:
    """A buffer of both parts, without a run."""
    terminated = np.zeros(rows, np.bool_)
    terminated[9::10] = True
    store, ring = build_store(raw_of(terminated, terminated & False), env_of()), Ring(capacity, 3, 2)
    buffer = Replay(store)
    buffer.mix("half", store, ring)
    for i in range(steps):
        ring.add(np.full(3, 1000 + i), np.zeros(2), float(i), np.full(3, 1001 + i), i % 2 == 0, False)
    return buffer, store, ring


# ---- in mid-run --------------------------------------------------------------------------------------------------


def test_in_mid_run_the_buffer_shows_the_dataset_and_behind_it_each_step_that_was_made(
    fit: Fit, chain: dict[str, Run], pendulum: str
) -> None:
    def look(data: OnlineData, phase: Any) -> None:
        buffer, interaction = data.buffer, data.interaction
        assert isinstance(buffer, ReplayBuffer) and interaction is not None and data.store is not None
        assert len(buffer) == ROWS + phase.env_steps == ROWS + 6 and buffer.write_count == 6
        assert same(buffer[:ROWS], data.store.leaves) and same(buffer[ROWS:], interaction.buffer.leaves)
        assert buffer[-1]["next", "observation"].tolist() == interaction.observation.tolist()
        assert buffer[-1]["next", "terminated"].dtype == torch.bool and buffer[-1].batch_size == torch.Size([])
        batch = buffer.sample(256)
        seen = set(buffer[ROWS:]["action"].flatten().tolist())  # a first observation may be one of the dataset
        assert set(batch["action"][:128].flatten().tolist()) <= seen
        assert not set(batch["action"][128:].flatten().tolist()) & seen
        assert batch["next", "truncated"].dtype == torch.bool

    midway(fit, chain, pendulum, look)


def test_looking_sampling_and_saving_in_mid_run_change_no_number_of_it(
    fit: Fit, chain: dict[str, Run], pendulum: str, tmp_path: Path
) -> None:
    def look(data: OnlineData, phase: Any) -> None:
        data.buffer.sample(64), data.buffer.state_dict(), data.buffer[::7], repr(data.buffer)
        data.buffer.dumps(tmp_path / "dump")
        data.buffer.loads(tmp_path / "dump")
        data.buffer.load_state_dict(data.buffer.state_dict())

    plain, watched = (midway(fit, chain, pendulum, action) for action in (lambda *_: None, look))
    one, two = plain.end(), watched.end()
    assert [key for key in one if not torch.equal(one[key], two[key])] == [] and plain.metrics() == watched.metrics()


def test_what_a_user_writes_in_mid_run_is_what_training_draws_next(
    fit: Fit, chain: dict[str, Run], pendulum: str
) -> None:
    def look(data: OnlineData, phase: Any) -> None:
        buffer, interaction = data.buffer, data.interaction
        assert interaction is not None
        buffer.set_("reward", torch.full((len(buffer),), 7.0))  # also what has been drawn of the dataset already
        interaction.step(lambda observation: np.zeros(1, np.float32))
        assert float(buffer[-1]["reward"]) != 7.0
        changed = buffer[-1].clone()
        changed["reward"] = torch.tensor(7.0)
        buffer[len(buffer) - 1] = changed
        assert buffer.add(changed) == len(buffer) - 1 == ROWS + 7
        assert next(data.batches(data.numbers()))["reward"].eq(7.0).all()

    midway(fit, chain, pendulum, look)


@pytest.mark.parametrize("mix", ["all", "part", "none"])
def test_where_a_ring_alone_is_learned_from_it_alone_is_the_buffer(
    fit: Fit, chain: dict[str, Run], pendulum: str, mix: str
) -> None:
    def look(data: OnlineData, phase: Any) -> None:
        assert data.interaction is not None
        assert len(data.buffer) == data.preloaded + 6 == len(data.interaction.buffer)
        data.buffer[:]["reward"].fill_(7.0)  # of one table, a slice is a view
        assert next(data.batches(data.numbers()))["reward"].eq(7.0).all()

    midway(fit, chain, pendulum, look, mix=mix)


# ---- TorchRL's promises ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 4, 13])
@pytest.mark.parametrize("way", ["state_dict", "dumps"])
def test_a_saved_buffer_is_loaded_as_it_was_and_by_a_plain_one_too(way: str, steps: int, tmp_path: Path) -> None:
    buffer, _, ring = half(steps=steps)
    first, other = buffer, half(steps=2)[0]
    buffer.rows(8, torch.Generator().manual_seed(0)) if steps else None
    plain = ReplayBuffer(storage=LazyTensorStorage(len(buffer)))
    if way == "dumps":
        first.dumps(tmp_path)
        other.loads(tmp_path)
        plain.loads(tmp_path)
    else:
        other.load_state_dict(first.state_dict())
        plain.storage.load_state_dict(first.state_dict()["_storage"])
    assert len(other) == len(first) == len(plain) and same(first[:], other[:]) and same(first[:], plain[:])
    assert other.tables.ring is not None and other.tables.ring.cursor == ring.cursor == steps % 10
    assert same(first.sample(16), other.sample(16))  # and with it the generator
    if steps:
        streams = [torch.Generator().manual_seed(1) for _ in range(2)]
        assert torch.equal(first.rows(8, streams[0]), other.rows(8, streams[1]))


def test_rows_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="35 rows were saved, which does not fit 30 of at most 33"):
        half(capacity=3)[0].load_state_dict(half(steps=5)[0].state_dict())


def test_what_is_added_goes_round_the_ring_and_never_over_the_dataset() -> None:
    buffer, store, ring = half(capacity=4)
    before = store.leaves.clone()
    rows = store.gather(torch.arange(6))
    # as TorchRL's environments have it: scalars in a dimension of their own, and keys that are no column
    rows = rows.clone().set("reward", torch.arange(6.0)[:, None]).set("done", torch.zeros(6, 1))
    assert buffer.extend(rows).tolist() == [30, 31, 32, 33, 30, 31]
    assert len(buffer) == 34 and buffer[30:]["reward"].tolist() == [4, 5, 2, 3] and buffer.writer._cursor == 32
    assert buffer.add(rows[0]) == 32 and buffer[32]["reward"] == 0 and same(store.leaves, before)
    buffer.empty()
    assert len(buffer) == 30 and ring.cursor == 0 and buffer.sample(5).batch_size == torch.Size([5])


def test_a_dataset_alone_can_be_set_and_not_added_to() -> None:
    store = half()[1]
    buffer = Replay(store)
    buffer[2] = buffer[5]
    buffer[torch.tensor([7, 8])] = buffer[3:5].clone()
    buffer[np.array([9, 10])] = buffer[[3, 4]]
    buffer["next", "terminated"] = torch.ones(30, dtype=torch.bool)
    buffer.set_at_("reward", 3.0, [0, -1])
    assert torch.equal(store["observation"][2], store["observation"][5]) and store["next", "terminated"].all()
    assert store["reward"][7:11].tolist() == 2 * store["reward"][3:5].tolist()
    assert store["reward"][[0, -1]].tolist() == [3, 3] and store["reward"][1] != 3
    buffer.update_({"reward": torch.arange(30.0)})
    assert store["reward"].tolist() == list(range(30))
    with pytest.raises(RuntimeError, match="nothing can be added"):
        buffer.extend(buffer[:3])
    assert set(buffer.sample(500)["reward"].tolist()) <= set(range(30)) and len(buffer) == 30


@pytest.mark.parametrize("index", [3, -1, slice(25, 33), [1, 31, -1], np.array([0, 32]), torch.tensor([5, 31, 5])])
def test_any_index_reads_across_both_parts(index: Any) -> None:
    buffer, store, ring = half(steps=4)
    everything = torch.cat((store.leaves, ring.leaves))
    assert same(buffer[index], everything[index])
    mask = torch.arange(34) % 3 == 0
    assert same(buffer[mask], everything[mask])


def test_nothing_can_be_drawn_of_a_ring_that_is_empty() -> None:
    buffer = Replay()
    buffer.mix("none", None, Ring(5, 3, 2))
    with pytest.raises(RuntimeError, match="empty storage"):
        buffer.sample(4)


# ---- one dataset a run -------------------------------------------------------------------------------------------


class Loaded:
    """What each phase of a run had: its data, and its store as the phase left it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.data: list[OfflineData] = []
        self.caches: list[set[Any]] = []
        own = Built.fit

        def fit(built: Built, *args: Any) -> None:
            built.trainer.callbacks.append(self.Look(self))  # type: ignore[attr-defined]
            self.data.append(built.datamodule)
            own(built, *args)

        monkeypatch.setattr(Built, "fit", fit)

    class Look(Callback):
        def __init__(self, loaded: Loaded) -> None:
            self.loaded = loaded

        def on_train_start(self, trainer: L.Trainer, phase: Any) -> None:
            store = trainer.datamodule.store  # type: ignore[attr-defined]
            self.loaded.caches.append(set(store.caches.layout.widths) if store.caches else set())


def test_the_phases_of_a_run_share_one_dataset_and_one_buffer(o2o, pendulum: str, tmp_path: Path, monkeypatch) -> None:
    loaded = Loaded(monkeypatch)
    sizes = ("steps.offline=4", "steps.reevaluate=4", "steps.align=4", "--data.env_steps", 4, "--data.warmup_steps", 1)
    options = ("--data.batch_size", 16, "--data.eval_episodes", 1, "--model.hidden", "[16,16]")
    assert o2o("fit", *sizes, "--data.dataset", pendulum, *options, "--run_dir", tmp_path / "run") == 0
    first, *_, last = loaded.data
    assert len(loaded.data) == 4 and isinstance(last, OnlineData) and first.store is not None
    assert all(data.buffer is first.buffer and data.store is first.store for data in loaded.data)
    assert len(first.buffer) == ROWS + 4  # and shows the last phase's ring
    assert loaded.caches == [set(), {"next_offline_action"}, {"anchor", "anchor_value"}, set()]
    assert first.store.caches is None and first.store.td_count == 60 * 7


def test_a_phase_that_asks_for_other_data_loads_its_own(pendulum: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("O2O_CACHE", str(tmp_path))
    first = OfflineData(dataset=pendulum)
    first.setup("fit")
    for options in ({"memmap": True}, {"env_id": "Pendulum-v1"}, {"memory_limit_gb": 1.0}):
        data = OfflineData(**{"dataset": pendulum, **options})  # type: ignore[arg-type]
        data.follow(first)
        data.setup("fit")
        assert data.store is not first.store and data.buffer is not first.buffer, options
    data = OfflineData(dataset=pendulum, observation_layout="a")
    data.follow(first)
    with pytest.raises(UserError, match="the observation layout names a"):
        data.setup("fit")
    data = OfflineData(dataset=pendulum, batch_size=7, reward_scale=2.0)
    data.follow(first)
    data.setup("fit")
    assert data.store is first.store and data.buffer is first.buffer and data.rewards != first.rewards


@pytest.mark.parametrize("case", ["align", "bc", "clone"])
def test_a_phase_leaves_the_dataset_as_it_found_it(case: str, fit: Fit, chain: dict[str, Run], pendulum: str) -> None:
    kind = CloneData if case == "clone" else OfflineData
    data = kind(dataset=pendulum, batch_size=32, eval_episodes=1)
    if case == "clone":
        data.setup("fit")
        assert data.store is not None and data.store.td_count > 60 * 7
        data.teardown("fit")
    elif case == "bc":
        fit(lambda: Offline(BC(fraction=0.1, hidden=HIDDEN)), data, 4)
    else:
        fit(lambda: Align(td3.Align(), str(chain["reevaluate"].checkpoint), stop="converged"), data, 4)
    assert data.store is not None and data.store.caches is None and data.store.td_count == 60 * 7


MEASURED = """
import ctypes, gc, sys
from o2o_lightning.cli.lightning import Built
from o2o_lightning.cli.main import main

def megabytes():
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 1e6

own, found = Built.fit, []
def fit(self, *args):
    before = megabytes()
    own(self, *args)
    found.append(f"{before} {megabytes()}")
Built.fit = fit
assert main(sys.argv[1:]) == 0
print("MEASURED", found[-1])
"""


def test_the_last_phase_of_a_run_takes_no_memory_for_the_dataset(tmp_path: Path) -> None:
    rows, stream = 100_000, np.random.default_rng(0)
    with h5py.File(tmp_path / "data.hdf5", "w") as file:  # 17 MB in memory
        file["observations"] = stream.normal(size=(rows, 17)).astype(np.float32)
        file["actions"] = stream.uniform(-1, 1, (rows, 6)).astype(np.float32)
        file["rewards"] = stream.normal(size=rows).astype(np.float32)
        file["terminals"] = np.zeros(rows, np.bool_)
        file["timeouts"] = np.arange(1, rows + 1) % 1000 == 0
        file["metadata/env_id"] = "HalfCheetah-v5"
    counts = [
        "steps.offline=4",
        "steps.reevaluate=4",
        "steps.align=4",
        "--data.env_steps",
        "8",
        "--data.warmup_steps",
        "4",
    ]
    small = ["--data.eval_episodes", "1", "--model.hidden", "[16,16]", "--trainer.accelerator", "cpu"]
    paths = ["--data.dataset", str(tmp_path / "data.hdf5"), "--run_dir", str(tmp_path / "run")]
    command = [sys.executable, "-c", MEASURED, "fit", *counts, *small, *paths]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("MEASURED")]
    before, after = map(float, line.split()[1:])
    assert after - before < 15, line
