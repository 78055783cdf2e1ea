"""Datasets that are damaged or oddly made: read for what they hold, or refused in one line, in bounded memory and time.

Seconds here; ``make test-slow`` does hundreds a layout.
"""

import os
import random
import resource
import signal
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_fuzz import damaged

from o2o_lightning.data.build import build_store
from o2o_lightning.data.hdf5 import read_hdf5
from o2o_lightning.errors import UserError

ROWS, SECONDS, MEGABYTES = 40, 60, 300
Make = Callable[[Path], None]


def columns() -> dict[str, Any]:
    chance, step = np.random.default_rng(0), np.arange(ROWS)
    return {
        "observations": chance.normal(size=(ROWS, 3)).astype(np.float32),
        "actions": chance.uniform(-1, 1, (ROWS, 2)).astype(np.float32),
        "rewards": chance.normal(size=ROWS).astype(np.float32),
        "terminals": step % 10 == 9,
        "timeouts": step % 20 == 19,
    }


def plain(path: Path) -> None:
    with h5py.File(path, "w") as file:
        for key, column in columns().items():
            file[key] = column
        file["metadata/env_id"], file["infos/qpos"] = "Toy-v0", np.zeros((ROWS, 2))
        file["next_observations"] = h5py.SoftLink("/observations")


def packed(path: Path) -> None:
    with h5py.File(path, "w", libver="latest") as file:
        for key, column in columns().items():
            file.create_dataset(key, data=column, compression="gzip", shuffle=True, chunks=(16, *column.shape[1:]))
        file.attrs["env_id"] = "Toy-v0"


def d3rlpy(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["total_size"] = 4
        for i, rows in enumerate(slice(at, at + 10) for at in range(0, ROWS, 10)):
            for key in ("observations", "actions", "rewards"):
                file[f"{key}_{i}"] = columns()[key][rows]
            file[f"terminated_{i}"] = True


def robomimic(path: Path) -> None:
    with h5py.File(path, "w") as file:
        for i, rows in enumerate(slice(at, at + 10) for at in range(0, ROWS, 10)):
            for key, name in (("observations", "obs/state"), ("actions", "actions"), ("rewards", "rewards"),
                              ("terminals", "dones")):  # fmt: skip
                file[f"data/demo_{i}/{name}"] = columns()[key][rows]


def use(path: Path) -> None:
    """Everything of a file that a run may use; what is taken is whole and finite."""
    raw = read_hdf5(path)
    store = build_store(raw, None)
    for key in ("observation", "action", "reward"):
        assert len(store[key]) == len(raw) and bool(store[key].isfinite().all()), key
    for name in raw.infos:
        np.asarray(raw.infos[name])


def outcome(path: Path) -> str:
    """How :func:`use` ends in a process of its own: ``taken``, ``refused``, or what should not be."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))  # on a busy machine the clock says nothing
        signal.alarm(10 * SECONDS)  # for what would wait for ever
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            use(path)
            found = "taken"
        except UserError as error:
            found = "refused" if "\n" not in str(error) and str(path) in str(error) else f"unclear: {error}"
        except BaseException as error:
            found = f"{type(error).__name__}: {error}"
        used = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
        os.write(writing, (found if used < MEGABYTES else f"{found} with {used} MB").encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        found = pipe.read().decode()
    status = os.waitpid(child, 0)[1]
    return found if status == 0 else f"signal {os.WTERMSIG(status)}"


@pytest.mark.parametrize("damages", [12, pytest.param(300, marks=pytest.mark.slow)])
@pytest.mark.parametrize("make", [plain, packed, d3rlpy, robomimic])
def test_a_damaged_file_is_taken_whole_or_refused_in_one_line(make: Make, damages: int, tmp_path: Path) -> None:
    path = tmp_path / "a.hdf5"
    make(path)
    assert outcome(path) == "taken"
    content, ends = path.read_bytes(), {}
    for seed in range(damages):
        path.write_bytes(damaged(content, random.Random(seed)))
        ends[seed] = outcome(path)
    assert {seed: end for seed, end in ends.items() if end not in ("taken", "refused")} == {}
    assert "refused" in ends.values()


def test_a_file_that_hdf5_loops_over_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.hdf5"
    plain(path)
    content = bytearray(path.read_bytes())
    heap = content.index(b"GCOL")  # where texts lie: objects one after the other, each with its size
    content[heap + 16 + 8 : heap + 16 + 16] = bytes(8)
    content[heap + 16 : heap + 18] = (7).to_bytes(2, "little")
    path.write_bytes(content)
    assert outcome(path) in ("taken", "refused")


# ---- chunks that unpack to more than they declare --------------------------------------------------------------------


def test_a_chunk_that_unpacks_to_gigabytes_is_refused_before_it_does(tmp_path: Path) -> None:
    path, packer = tmp_path / "a.hdf5", zlib.compressobj(9)
    bomb = b"".join([*(packer.compress(bytes(2**20)) for _ in range(1024)), packer.flush()])
    with h5py.File(path, "w") as file:
        for key, column in columns().items():
            file.create_dataset(key, data=column, compression="gzip", chunks=column.shape)
        file["observations"].id.write_direct_chunk((0, 0), bomb)
    with pytest.raises(UserError, match="'observations' has chunks that unpack to more than they declare"):
        read_hdf5(path)
    assert outcome(path) == "refused"


def test_an_array_that_is_packed_twice_over_is_refused(tmp_path: Path) -> None:
    made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    made.set_chunk((ROWS, 3))
    for _ in range(2):
        made.set_deflate(9)
    plain(path := tmp_path / "a.hdf5")
    with h5py.File(path, "r+") as file:
        del file["observations"]
        space = h5py.h5s.create_simple((ROWS, 3))
        h5py.h5d.create(file.id, b"observations", h5py.h5t.NATIVE_FLOAT, space, made)
    with pytest.raises(UserError, match="'observations' is compressed twice over"):
        read_hdf5(path)


# ---- arrays of any kind ----------------------------------------------------------------------------------------------

SHAPES = ((), (0,), (6,), (5,), (6, 1), (6, 2), (0, 2), (6, 0), (6, 2, 2), (6, 1, 1))
KINDS = ("f4", "f8", "f2", "i8", "u1", "?", "c8", "S3", "O", [("a", "f4"), ("b", "f4")], "M")


@st.composite
def any_array(draw: st.DrawFn) -> Any:
    kind, shape = draw(st.sampled_from(KINDS)), draw(st.sampled_from(SHAPES))
    special = draw(st.sampled_from(("", "nan", "null", "group")))
    if special in ("null", "group"):
        return special
    if kind == "O":
        return np.full(shape, "text", h5py.string_dtype())
    array = np.zeros(shape, "f4" if kind == "M" else kind)
    if special == "nan" and array.size and array.dtype.kind == "f":
        array.flat[-1] = np.nan
    return array


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(odd=st.dictionaries(
    st.sampled_from(["observations", "actions", "rewards", "terminals", "timeouts", "next_observations",
                     "infos/qpos", "metadata/env_id", "metadata/obs_layout", "metadata", "infos", "data", "dones",
                     "episode_terminals", "total_size", "observations_0", "data/demo_0", "data/demo_0/obs/a"]),
    any_array(), max_size=3,
))  # fmt: skip
def test_arrays_of_any_kind_and_shape_are_read_or_refused(odd: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "a.hdf5"
    path.unlink(missing_ok=True)
    good = {"observations": np.zeros((6, 3), "f4"), "actions": np.zeros((6, 2), "f4"), "rewards": np.arange(6.0),
            "terminals": np.arange(6) == 5}  # fmt: skip
    with h5py.File(path, "w") as file:
        for key, value in {**odd, **{key: value for key, value in good.items() if key not in odd}}.items():
            above = [parent for parent in Path(key).parents if str(parent) in file]
            if key in file or any(isinstance(file[str(parent)], h5py.Dataset) for parent in above if parent.name):
                continue
            if isinstance(value, str):
                file.create_group(key) if value == "group" else file.create_dataset(key, data=h5py.Empty("f4"))
            else:
                file[key] = value
    try:
        use(path)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 600
