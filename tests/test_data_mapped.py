"""A memory-mapped dataset is the one in memory, bit for bit; it is converted once, and found again."""

from __future__ import annotations

import dataclasses
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import killing
import numpy as np
import pytest
import torch
from conftest import HIDDEN, Fit, Run
from data_files import env_of, raw_of

from o2o_lightning.data import mapped
from o2o_lightning.data.build import build_store
from o2o_lightning.data.mapped import mapped_store
from o2o_lightning.data.module import OfflineData
from o2o_lightning.data.raw import RawDataset
from o2o_lightning.errors import UserError
from o2o_lightning.launch import note_once
from o2o_lightning.methods.o2 import td3
from o2o_lightning.methods.td3_bc import TD3BC
from o2o_lightning.nn.normalizer import Normalizer
from o2o_lightning.phases.align import Align
from o2o_lightning.phases.offline import Offline
from o2o_lightning.phases.reevaluate import Reevaluate
from o2o_lightning.replay.buffer import Replay
from o2o_lightning.replay.ring import Ring


def toy(rows: int = 23) -> RawDataset:
    terminated, truncated = np.zeros((2, rows), np.bool_)
    terminated[4] = truncated[[7, 15]] = True
    return raw_of(terminated, truncated)


def folders(cache: Path) -> list[Path]:
    return sorted(path for path in (cache / "transitions").iterdir() if path.is_dir())


def test_it_equals_the_one_in_memory(tmp_path: Path) -> None:
    raw = toy()
    plain, found = build_store(raw, env_of()), mapped_store(raw, env_of(), tmp_path)
    for key in plain.leaves.keys(include_nested=True, leaves_only=True):
        assert torch.equal(plain.leaves[key], found.leaves[key]) and type(found.leaves[key]) is torch.Tensor
    assert plain.td_rows is not None and torch.equal(plain.td_rows, found.td_rows)
    assert torch.equal(plain.episodes, found.episodes) and torch.equal(plain.complete, found.complete)
    assert found.manifest == dataclasses.replace(plain.manifest, memmapped=True)
    drawn = [store.sample_rows((3, 5), torch.Generator().manual_seed(0)) for store in (plain, found)]
    assert torch.equal(plain.gather(drawn[0])["next", "observation"], found.gather(drawn[1])["next", "observation"])


def test_it_is_converted_once_and_found_under_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mapped_store(toy(), env_of(), tmp_path)
    monkeypatch.setattr(mapped, "build_store", lambda *_: pytest.fail("converted again"))
    again = mapped_store(dataclasses.replace(toy(), source="moved.hdf5"), env_of(), tmp_path)
    assert again.manifest.source == "moved.hdf5" and len(again) == 23


def test_what_changes_the_rows_makes_another_map(tmp_path: Path) -> None:
    mapped_store(toy(), env_of(), tmp_path)
    native = mapped_store(dataclasses.replace(toy(), units="native"), env_of(-2.0, 2.0), tmp_path)
    torch.testing.assert_close(native.leaves["action"] * 2, build_store(toy(), env_of()).leaves["action"])
    other = dataclasses.replace(toy(), sha256="1" * 64)
    mapped_store(other, env_of(), tmp_path)
    assert len(folders(tmp_path)) == 3


def test_a_conversion_that_was_killed_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    mapped_store(toy(), env_of(), tmp_path)
    (folder,) = folders(tmp_path)
    os.replace(folder, folder.with_suffix(".partial"))
    (folder.with_suffix(".partial") / "index.pt").write_bytes(b"half")
    assert len(mapped_store(toy(), env_of(), tmp_path)) == 23
    assert folders(tmp_path) == [folder]


def test_bad_data_leaves_no_map(tmp_path: Path) -> None:
    raw = toy()
    raw.rewards[3] = np.nan
    with pytest.raises(UserError, match="'rewards' has NaN at row 3"):
        mapped_store(raw, env_of(), tmp_path)
    assert folders(tmp_path) == []


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def zero(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-64] + bytes(64))


@pytest.mark.parametrize("file", ["index.pt", "table.memmap"])
@pytest.mark.parametrize("damage", [cut, flip, zero, os.unlink])
def test_a_map_that_has_changed_on_the_disk_is_said_and_made_anew(damage, file, tmp_path: Path, capsys) -> None:
    note_once.cache_clear()
    mapped_store(toy(), env_of(), tmp_path)
    (folder,) = folders(tmp_path)
    damage(folder / file)
    again = mapped_store(toy(), env_of(), tmp_path)
    assert capsys.readouterr().err.count("is damaged") == 1
    assert torch.equal(again.matrix, build_store(toy(), env_of()).matrix) and folders(tmp_path) == [folder]
    mapped_store(toy(), env_of(), tmp_path)
    assert capsys.readouterr().err == ""


def test_a_damaged_map_in_a_cache_that_cannot_be_written_is_refused_in_one_line(tmp_path, monkeypatch) -> None:
    mapped_store(toy(), env_of(), tmp_path)
    (folder,) = folders(tmp_path)
    flip(folder / "table.memmap")

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(mapped, "FileLock", refuse)
    with pytest.raises(UserError, match=r"cannot be written \(Read-only file system\). Point the variable O2O_CACHE"):
        mapped_store(toy(), env_of(), tmp_path)


def test_what_a_run_writes_to_its_rows_never_reaches_the_map(tmp_path: Path) -> None:
    store = mapped_store(toy(), env_of(), tmp_path)
    Replay(store)[3] = Replay(store)[4]
    assert torch.equal(store["action"][3], store["action"][4])
    assert torch.equal(mapped_store(toy(), env_of(), tmp_path)["action"], build_store(toy(), env_of())["action"])


def test_a_disk_that_fills_up_meanwhile_is_refused_and_kills_nothing(tmp_path: Path) -> None:
    small, log = tmp_path / "small", tmp_path / "log"
    small.mkdir()

    def scenario() -> None:
        space = os.statvfs(small)
        (small / "other").write_bytes(b"x" * (space.f_bavail * space.f_frsize - 2**16))
        with pytest.raises(UserError, match=r"its memory map of 1 MB .* \(No space left on device\). Point the"):
            mapped_store(toy(30_000), env_of(), small / "cache")
        assert folders(small / "cache") == []

    if not killing.on_a_file_system_of_its_own(small, "4m", scenario, log):
        pytest.skip("this kernel lets no user mount a tmpfs in a namespace of his own")


def test_a_cache_that_cannot_be_written_is_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be written .* O2O_CACHE"):
        mapped_store(toy(), env_of(), tmp_path / "file")


def test_a_finished_map_in_a_read_only_cache_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mapped_store(toy(), env_of(), tmp_path)
    monkeypatch.setattr(mapped, "FileLock", lambda _: pytest.fail("locked"))
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: pytest.fail("made a folder"))
    assert len(mapped_store(toy(), env_of(), tmp_path)) == 23


MAKE: dict[str, tuple[Callable[[str], Any], str | None]] = {  # with the phase that each starts from
    "offline": (lambda at: Offline(TD3BC(hidden=HIDDEN)), None),
    "reevaluate": (lambda at: Reevaluate(td3.Reevaluate(), at), "offline"),
    "align": (lambda at: Align(td3.Align(), at), "reevaluate"),
}


def maker(phase: str, chain: dict[str, Run]) -> Callable[[], Any]:
    make, before = MAKE[phase]
    return lambda: make("" if before is None else str(chain[before].checkpoint))


def data(dataset: str, **options: object) -> OfflineData:
    return OfflineData(dataset=dataset, batch_size=32, eval_episodes=1, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("phase", MAKE)
def test_training_from_the_map_gives_the_same_bits(phase, fit: Fit, chain, pendulum, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("O2O_CACHE", str(tmp_path))
    make = maker(phase, chain)
    runs = [fit(make, lambda memmap=memmap: data(pendulum, memmap=memmap), 12) for memmap in (False, True)]
    assert [run.module.data.store.manifest.memmapped for run in runs] == [False, True]
    one, two = (run.end() for run in runs)
    assert [key for key in one if not torch.equal(one[key], two[key])] == []
    assert runs[0].module.curve == runs[1].module.curve and runs[0].metrics() == runs[1].metrics()


def test_auto_maps_what_is_larger_than_the_limit(pendulum, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("O2O_CACHE", str(tmp_path))
    for limit, expected in ((1.0, False), (1e-6, True)):
        module = data(pendulum, memory_limit_gb=limit)
        module.setup("fit")
        assert module.store is not None and module.store.manifest.memmapped is expected


# ---- large datasets are prepared batch by batch ------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["reevaluate", "align"])
def test_a_large_dataset_needs_no_preparation_and_learns_the_same(
    phase: str, fit: Fit, chain: dict[str, Run], pendulum: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = maker(phase, chain)
    prepared = fit(make, lambda: data(pendulum), 12)
    monkeypatch.setattr("o2o_lightning.data.module.PRECOMPUTE_ROWS", 100)
    live = [fit(make, lambda chunk=chunk: data(pendulum, chunk=chunk), 12) for chunk in (1, 16)]
    assert not {"anchor", "next_offline_action"} & set(live[0].module.data.store.leaves.keys())
    one, two, three = (run.end() for run in (*live, prepared))
    assert [key for key in one if not torch.equal(one[key], two[key])] == []
    for key, value in three.items():  # other blocks of the same networks: equal up to rounding
        torch.testing.assert_close(one[key], value, rtol=1e-3, atol=1e-5)


def test_constants_of_chosen_rows_are_those_of_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    values, chosen = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)), torch.arange(3, 50, 2)
    monkeypatch.setattr("o2o_lightning.data.raw.blocks.__defaults__", (7,))
    one, two = Normalizer.fit(values, chosen=chosen), Normalizer.fit(values[chosen])
    assert torch.equal(one.mean, two.mean) and torch.equal(one.std, two.std)


def test_a_buffer_smaller_than_the_dataset_takes_its_newest_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("o2o_lightning.data.raw.blocks.__defaults__", (4,))
    store, ring = build_store(toy(), env_of()), Ring(9, 3, 2)
    Replay(store).mix("all", store, ring)
    assert store.td_rows is not None
    assert ring.gather(torch.arange(9))["observation"][:, 0].tolist() == store.td_rows[-9:].tolist()
