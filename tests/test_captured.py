"""Runs whose updates are recorded whole and replayed, as a GPU's are: on a CPU by ``--model.compile record``.

The rivals' battery has a recorded run of every other method, ``test_engine.py`` each rule without a run, and
``test_cuda_graphs.py`` the same on a GPU.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import killing
import pytest
import torch
from test_resume import PENDULUM, PIPELINES, SIZES
from torch.utils._python_dispatch import TorchDispatchMode

from o2o_lightning.checkpoint.run import read_config, write_config
from o2o_lightning.data.mapped import opened_once
from o2o_lightning.data.module import OfflineData
from o2o_lightning.data.near import NearGather
from o2o_lightning.data.online import OnlineData
from o2o_lightning.engine.gather import Gather
from o2o_lightning.engine.record import Watch, is_view
from o2o_lightning.nn.mlp import fetched
from o2o_lightning.nn.normalizer import Normalizer
from o2o_lightning.replay.interaction import Interaction
from o2o_lightning.replay.mirror import Mirror, mirror
from o2o_lightning.replay.rewards import RewardMap
from o2o_lightning.replay.ring import Ring

RECORD = ["--model.compile", "record"]
CPU = ["--trainer.accelerator", "cpu"]
PHASES = {"O2TD3": ["offline", "reevaluate", "align", "online"], "O2SAC": ["offline", "reevaluate", "align", "online"]}
PHASES |= {"O2PPO": ["offline", "reevaluate", "online"]}


def fit(folder: Path, argv: list[str], prepare: Any = lambda: None, code: int = 0) -> str:
    log = folder.with_suffix(".log")
    assert killing.run([*argv, "--run_dir", str(folder)], log, prepare) == code, log.read_text()
    return log.read_text()


def counting_replays(file: Path) -> Any:
    """For ``prepare``: writes how many updates each replay was of."""

    def prepare() -> None:
        from o2o_lightning.engine.captured import Captured

        replay = Captured.replay

        def watched(self: Any, piece: Any, gather: Any) -> Any:
            with file.open("a") as out:
                print(len(piece.moments), file=out)
            return replay(self, piece, gather)

        Captured.replay = watched  # type: ignore[method-assign]

    return prepare


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Runs of the paper's three pipelines, step by step and recorded, made when first asked for."""
    killing.import_everything()
    return {"scratch": (tmp_path_factory.mktemp("pipelines"),) * 2}


def runs(pipelines: dict[str, tuple[Path, Path]], name: str) -> tuple[Path, Path]:
    if name not in pipelines:
        scratch, argv = pipelines["scratch"][0], ["fit", "--phase", "all", *SIZES, *PIPELINES[name], *CPU]
        pipelines[name] = scratch / f"{name} stepwise", scratch / f"{name} recorded"
        fit(pipelines[name][0], argv)
        said = fit(pipelines[name][1], [*argv, *RECORD], counting_replays(scratch / f"{name}.txt"))
        assert said.count("updates are recorded and replayed, as on a GPU") == len(PHASES[name])
    return pipelines[name]


@pytest.mark.parametrize("name", ["O2TD3", "O2PPO", pytest.param("O2SAC", marks=pytest.mark.slow)])
def test_a_recorded_run_has_the_bits_of_one_that_was_made_step_by_step(name: str, pipelines: Any) -> None:
    stepwise, recorded = runs(pipelines, name)
    assert killing.numbers_that_differ(stepwise, recorded, PHASES[name]) == []
    # four chunks of eight are four replays, with rows of metrics among them or not, and what is left is a few more
    sizes = [int(line) for line in (pipelines["scratch"][0] / f"{name}.txt").read_text().splitlines()]
    assert {1, 8} <= {*sizes} <= {1, 2, 4, 8}
    made = sum(part["steps"] for part in json.loads((recorded / "summary.json").read_text())["phases"].values())
    assert sum(sizes) == made


@pytest.mark.parametrize("phase, event, count", [
    ("align", "replace", 5), ("online", "env_step", 53),
    pytest.param("reevaluate", "write", 90, marks=pytest.mark.slow),
])  # fmt: skip
def test_a_recorded_run_that_is_killed_goes_on_to_the_same_bits(
    phase: str, event: str, count: int, pipelines: Any, tmp_path: Path
) -> None:
    _, recorded = runs(pipelines, "O2TD3")
    folder, log = tmp_path / "run", tmp_path / "log"
    shutil.copytree(recorded, folder, ignore=shutil.ignore_patterns("*.state"))
    phases = PHASES["O2TD3"][PHASES["O2TD3"].index(phase) :]
    for later in phases:
        shutil.rmtree(folder / later)
    (folder / "summary.json").unlink()
    assert killing.run(["resume", str(folder)], log, killing.die_at(event, count)) == -9, log.read_text()
    assert killing.run(["resume", str(folder)], log) == 0, log.read_text()
    assert killing.differences(recorded, folder, phases) == []


def test_a_recorded_clone_is_the_one_that_was_made_step_by_step(pipelines: Any, pendulum: str, tmp_path: Path) -> None:
    data = ["dataset=file", "--data.dataset", pendulum, "--data.batch_size", "16", "--data.eval_episodes", "1", *CPU]
    small, folder = ["--model.hidden", "[8,8]"], tmp_path / "source"
    fit(folder, ["fit", "--phase", "offline", "offline=td3_bc", "steps.offline=8", *data, *small])
    clone = ["fit", "--phase", "clone", "online=o2sac", *data, *small, "--trainer.max_steps", "24", "--data.chunk", "4"]
    clone += ["--model.init_from", str(folder / "offline/checkpoints/last.ckpt"), "--model.check_every", "8"]
    fit(tmp_path / "stepwise", clone)
    assert "recorded and replayed" in fit(tmp_path / "recorded", [*clone, *RECORD])
    assert killing.numbers_that_differ(tmp_path / "stepwise", tmp_path / "recorded", ["clone"]) == []


def test_a_run_may_go_on_step_by_step_where_it_was_recorded(pipelines: Any, tmp_path: Path) -> None:
    line = [*PENDULUM, "online=td3", *CPU]
    fit(tmp_path / "stepwise", line)
    folder, log = tmp_path / "recorded", tmp_path / "log"
    fit(folder, [*line, *RECORD], killing.die_at("env_step", 47), code=-9)
    config = folder / "online/config.yaml"
    write_config(config, read_config(config).replace("compile: record", "compile: false"))
    assert killing.run(["resume", str(folder)], log) == 0, log.read_text()
    assert killing.numbers_that_differ(tmp_path / "stepwise", folder, ["online"]) == []


def test_without_a_gpu_updates_are_made_step_by_step(pipelines: Any, tmp_path: Path) -> None:
    said = fit(tmp_path / "run", [*PENDULUM, "online=td3", *CPU], counting_replays(tmp_path / "replays"))
    assert "replayed" not in said and not (tmp_path / "replays").exists()
    assert "compile: auto" in read_config(tmp_path / "run/online/config.yaml")


# ---- where it can't be -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more, why", [
    (["--trainer.precision", "bf16-mixed"], "--trainer.precision bf16-mixed"),
    (["--trainer.profiler", "simple"], "a callback, a profiler or anomaly detection listens to each step"),
])  # fmt: skip
def test_where_updates_cannot_be_recorded_one_line_says_why(
    more: list[str], why: str, pipelines: Any, tmp_path: Path
) -> None:
    line = [*PENDULUM, "online=td3", *CPU, *more]
    fit(tmp_path / "stepwise", line)
    said = fit(tmp_path / "run", [*line, *RECORD], counting_replays(tmp_path / "replays"))
    assert said.count(f"online: updates are made step by step, for {why}") == 1
    assert not (tmp_path / "replays").exists()
    assert killing.numbers_that_differ(tmp_path / "stepwise", tmp_path / "run", ["online"]) == []


def test_a_rule_that_looks_at_its_numbers_runs_step_by_step_after_one_line(pipelines: Any, tmp_path: Path) -> None:
    line = [*PENDULUM, "online=td3", *CPU]
    fit(tmp_path / "stepwise", line, looking_at_the_policy)
    said = fit(tmp_path / "run", [*line, *RECORD], looking_at_the_policy)
    assert said.count("can't be recorded (_local_scalar_dense waits for a number): updates are made step by step") == 1
    assert killing.numbers_that_differ(tmp_path / "stepwise", tmp_path / "run", ["online"]) == []


def looking_at_the_policy() -> None:
    """The policy's loss, which comes at every second update, is looked at."""
    from o2o_lightning.methods.o2.td3 import Online

    policy = Online.policy_loss

    def looking(self: Any, q: torch.Tensor, *rest: Any) -> Any:
        assert math.isfinite(float(q.detach().mean()))
        return policy(self, q, *rest)

    Online.policy_loss = looking  # type: ignore[method-assign]


def test_a_run_that_began_on_a_gpu_is_refused_in_one_line_on_a_cpu(pipelines: Any, tmp_path: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "resumed.log"
    fit(folder, [*PENDULUM, "online=td3", *CPU], killing.die_at("env_step", 47), code=-9)
    (side,) = folder.glob("online/checkpoints/last.*.state/rank-0.pt")
    state = torch.load(side, weights_only=True)
    state["phase"]["noise"]["generator"] = torch.zeros(16, dtype=torch.uint8)  # as CUDA's: a seed and a place
    torch.save(state, side)
    assert killing.run(["resume", str(folder)], log) == 2, log.read_text()
    (line,) = [line for line in log.read_text().splitlines() if line.startswith("o2o: ")]
    assert "began on another kind of device than cpu" in line and "--model.init_from" in line
    assert "Traceback" not in log.read_text()


# ---- numbers that are none ---------------------------------------------------------------------------------------


def test_a_batch_of_which_no_loss_came_is_found_again_by_its_rows(pipelines: Any, tmp_path: Path) -> None:
    def spoil() -> None:
        step = Interaction.step

        def spoiled(self: Any, explore: Any) -> None:
            step(self, explore)
            if self.steps >= 45:
                self.buffer.matrix[self.buffer.cursor - 1, -5:].fill_(math.nan)

        Interaction.step = spoiled  # type: ignore[method-assign]

    said = {}
    for name, more in (("stepwise", []), ("recorded", RECORD)):
        line = [*PENDULUM, "online=td3", *CPU, *more]
        log = fit(tmp_path / name, line, spoil, code=1)
        (said[name],) = [line for line in log.splitlines() if line.startswith("o2o: ")]
    assert said["recorded"] == said["stepwise"] and "not finite" in said["recorded"]
    dumps = [torch.load(tmp_path / name / "online/failed_batch.pt", weights_only=True) for name in said]
    assert dumps[0]["update"] == dumps[1]["update"] and dumps[0]["wrong"] == dumps[1]["wrong"]
    assert all(torch.equal(value.nan_to_num(), dumps[1]["batch"][key].nan_to_num())
               for key, value in dumps[0]["batch"].items())  # fmt: skip


# ---- tables on a device ------------------------------------------------------------------------------------------


def test_the_weights_to_act_with_come_in_one_copy_and_as_they_are() -> None:
    weights = [torch.arange(6.0).view(3, 2).t(), torch.arange(2.0), torch.tensor(3.0)]
    copies = fetched(weights)
    assert all(torch.equal(copy, weight) for copy, weight in zip(copies, weights, strict=True))
    assert len({copy.untyped_storage().data_ptr() for copy in copies}) == 1


def filled(capacity: int, count: int) -> Ring:
    ring = Ring(capacity, 2, 1)
    for i in range(count):
        ring.add([i, i], [0.5], float(i), [i + 1, i], False, False)
    return ring


def test_a_mirror_has_the_rows_that_were_written_since_also_round_the_end_of_the_ring() -> None:
    ring = filled(5, 3)
    copy = Mirror(ring, torch.device("cpu"))
    memory = copy.matrix.data_ptr()
    for count in (1, 3, 2, 7):
        for i in range(count):
            ring.add([9.0 * i, i], [0.1], float(count), [i, i], False, False)
        copy.refresh()
        assert torch.equal(copy.matrix[: len(ring)], ring.rows) and len(copy) == len(ring)
    ring.put(torch.tensor([1]), {"reward": torch.tensor([70.0])})
    assert copy.matrix[1].tolist() != ring.matrix[1].tolist()
    copy.refresh()
    assert torch.equal(copy.matrix, ring.matrix) and copy.matrix.data_ptr() == memory


def test_a_single_new_row_is_all_that_is_copied() -> None:
    ring = filled(5, 4)
    stamp = ring.stamp
    ring.add([0.0, 0.0], [0.0], 0.0, [0.0, 0.0], False, False)
    assert ring.since(stamp) == [slice(4, 5)]
    stamp = ring.stamp
    assert ring.since(stamp) == []
    ring.add([0.0, 0.0], [0.0], 0.0, [0.0, 0.0], False, False)
    assert ring.since(stamp) == [slice(0, 1)]


@pytest.mark.parametrize("kind", [OfflineData, OnlineData])
def test_a_batch_of_mirrored_tables_is_gathered_without_the_host(kind: type[OfflineData], pendulum: str) -> None:
    data, meta = kind(pendulum, batch_size=8), torch.device("meta")
    data.setup("fit")
    data.normalizer = data.fit_normalizer()
    assert data.store is not None
    data.store.attach("anchor", torch.zeros(len(data.store), 2))
    if isinstance(data, OnlineData):
        data.buffer.extend(data.store.gather(torch.arange(9)))
    data.trainer = SimpleNamespace(lightning_module=SimpleNamespace(device=meta, lane=None))  # type: ignore[assignment]
    assert data.keep_near(meta)
    drawn = data.numbers((3, 8))
    numbers = tuple(part.to(meta) for part in drawn) if isinstance(drawn, tuple) else drawn.to(meta)
    batches = [*data.batches(numbers)]  # once, which brings what is constant
    data.refresh()
    with Watch(meta):
        batches = [*data.batches(numbers)]
    assert len(batches) == (1 if isinstance(data, OnlineData) else 3)
    assert {leaf.device for batch in batches for leaf in batch.values(True, True)} == {meta}
    data.let_go()
    data.trainer = SimpleNamespace(lightning_module=SimpleNamespace(device=torch.device("cpu"), lane=None))  # type: ignore[assignment]
    assert next(data.batches(drawn))["reward"].device.type == "cpu"


class Counted(TorchDispatchMode):
    """Counts operations by name, but for those that show memory in another form."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not is_view(func):
            self.counts[name] = self.counts.get(name := func.overloadpacket.__name__, 0) + 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("online", [False, True])
@pytest.mark.parametrize("seeds", [3, 5])
def test_rows_of_all_seeds_are_made_batches_at_once_with_the_bits_of_each(
    seeds: int, online: bool, pendulum: str
) -> None:
    opened, gathers, drawn = opened_once(), [], []
    for seed in range(seeds):
        data = (OnlineData if online else OfflineData)(pendulum, batch_size=8, reward_scale=2.0)
        data.open = opened
        data.setup("fit")
        assert data.store is not None
        data.normalizer = Normalizer(torch.full((3,), 0.1 * seed), torch.full((3,), 1.0 + seed), clip=1.5)
        data.trainer = SimpleNamespace(lightning_module=SimpleNamespace(device=torch.device("cpu"), lane=None))  # type: ignore[assignment]
        data.rows.manual_seed(seed)
        if isinstance(data, OnlineData):
            data.buffer.extend(data.store.gather(torch.arange(9 + seed)))
        else:
            data.store.attach("anchor", torch.full((len(data.store), 2), float(seed)))
        gathers.append(NearGather(data))
        drawn.append(data.numbers((4, 8)))
    expected = [*Gather().of_all([Gather()] * seeds, [[*own(part)] for own, part in zip(gathers, drawn, strict=True)])]
    with Counted() as counted:
        found = [*gathers[0].of_all(gathers, drawn)]
    assert len(found) == len(expected) == (1 if online else 4)
    for one, other in zip(found, expected, strict=True):
        assert {*one} == {*other} and one["observation"].shape == (seeds, 8, 3)
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert [counted.counts[name] for name in ("sub_", "div_", "mul_", "add_")] == [1, 1, 1, 1]
    assert counted.counts["embedding"] == (
        2 * seeds if online else 1 + seeds
    )  # ring and dataset; rows of all, and caches
    other = gathers[1].data
    other.rewards = RewardMap(3.0)
    assert torch.equal(
        next(gathers[0].of_all(gathers, drawn))["reward"][1], next(iter(other.batches(drawn[1])))["reward"]
    )


class Doubled(OfflineData):
    """A user's own, which makes batches in its own way."""

    def batches(self, numbers: Any) -> Any:
        for batch in super().batches(numbers):
            yield {"reward": 2.0 * batch["reward"]}


def test_a_datamodule_of_ones_own_makes_its_batches_for_several_seeds_too(pendulum: str) -> None:
    gathers, drawn = [], []
    for seed in range(2):
        data = Doubled(pendulum, batch_size=8)
        data.setup("fit")
        data.normalizer = data.fit_normalizer()
        data.trainer = SimpleNamespace(lightning_module=SimpleNamespace(device=torch.device("cpu"), lane=None))  # type: ignore[assignment]
        data.rows.manual_seed(seed)
        gathers.append(NearGather(data))
        drawn.append(data.numbers((1, 8)))
    found = next(gathers[0].of_all(gathers, drawn))["reward"]
    for seed, gather in enumerate(gathers):
        assert gather.data.store is not None
        assert torch.equal(found[seed], 2.0 * gather.data.store["reward"][drawn[seed][0]])


def test_tables_beyond_the_limit_stay_with_the_host() -> None:
    meta = torch.device("meta")
    ring = filled(5, 3)
    assert not mirror([ring], meta, ring.matrix.nbytes - 1) and ring.mirror is None and ring.near is ring
    assert mirror([ring], meta, ring.matrix.nbytes) and ring.near.matrix.device == meta
    assert mirror([ring], torch.device("cpu"), 0)  # it is there already


def test_seeds_have_one_copy_of_a_dataset_on_the_device_and_each_its_own_caches(pendulum: str) -> None:
    meta, data = torch.device("meta"), OfflineData(pendulum, batch_size=8)
    data.setup("fit")
    assert data.store is not None
    stores = [data.store.shared() for _ in range(3)]
    for store in stores:
        store.attach("anchor", torch.zeros(len(store), 2))
    caches = stores[0].caches
    assert caches is not None
    size = data.store.matrix.nbytes + 3 * caches.matrix.nbytes
    assert not mirror([stores[0]], meta, size - 1, seeds=3)
    assert all(mirror([store], meta, size, seeds=3) for store in stores)
    assert len({id(store.near.matrix) for store in stores}) == 1
    assert len({id(store.near.caches) for store in stores}) == 3
    ring = filled(5, 3)
    assert not mirror([ring], meta, 3 * ring.matrix.nbytes - 1, seeds=3)


def test_a_cache_that_is_written_reaches_the_device_in_the_memory_that_recordings_know(pendulum: str) -> None:
    data = OfflineData(pendulum, batch_size=8)
    data.setup("fit")
    store = data.store
    assert store is not None
    store.attach("anchor", torch.zeros(len(store)))
    copy = Mirror(store, torch.device("cpu"))
    assert copy.caches is not None
    memory, values = copy.caches.matrix.data_ptr(), torch.arange(float(len(store)))
    store.put(slice(None), {"anchor": values})
    copy.refresh()
    assert torch.equal(copy["anchor"], values)
    store.attach("anchor", values + 1.0)  # another table of caches
    copy.refresh()
    assert torch.equal(copy["anchor"], values + 1.0) and copy.caches.matrix.data_ptr() == memory


def test_a_device_without_room_leaves_the_gathering_to_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = filled(5, 3), filled(5, 3)

    def full(self: Mirror) -> None:
        if self.table is second:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Mirror, "refresh", full)
    assert not mirror([first, second], torch.device("meta"), 2**30)
    assert first.near is first and second.near is second
