"""What an HDF5 file of others may not do: show other files, take memory that it does not hold, or raise."""

import os
import resource
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from data_files import write
from policy_files import d4rl_file

from o2o_lightning.data.hdf5 import read_hdf5
from o2o_lightning.errors import UserError
from o2o_lightning.policies.d4rl_group import read_d4rl

SECRET = np.full((16, 3), 7.0, np.float32)


def external_storage(file: h5py.File, name: str) -> None:
    Path("secret").write_bytes(SECRET.tobytes())
    file.create_dataset(name, SECRET.shape, "f4", external=[("secret", 0, h5py.h5f.UNLIMITED)])


def external_link(file: h5py.File, name: str) -> None:
    with h5py.File("other.hdf5", "w") as other:
        other["x"] = SECRET
    file[name] = h5py.ExternalLink("other.hdf5", "/x")


def link_through_another_file(file: h5py.File, name: str) -> None:
    with h5py.File("other.hdf5", "w") as other:
        other["group/x"] = SECRET
    file["door"] = h5py.ExternalLink("other.hdf5", "/group")
    file[name] = h5py.SoftLink("/door/x")


def virtual_dataset(file: h5py.File, name: str) -> None:
    with h5py.File("other.hdf5", "w") as other:
        other["x"] = SECRET
    layout = h5py.VirtualLayout(SECRET.shape, "f4")
    layout[:] = h5py.VirtualSource("other.hdf5", "x", SECRET.shape)
    file.create_virtual_dataset(name, layout)


def circle(file: h5py.File, name: str) -> None:
    file[name] = h5py.SoftLink(f"/{name}")


@pytest.mark.parametrize("place", ["metadata/policy/fc0/weight", "observations", "metadata/policy"])
@pytest.mark.parametrize("way", [external_storage, external_link, link_through_another_file, virtual_dataset, circle])
def test_a_policy_shows_no_other_file(
    way: Callable[[h5py.File, str], None], place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = d4rl_file(tmp_path / "a.hdf5")[0]
    with h5py.File(path, "a") as file:
        del file[place]
        way(file, place)
    with pytest.raises(UserError, match=r"lies in other files|holds no policy"):
        read_d4rl(path)


@pytest.mark.parametrize("way", [external_link, link_through_another_file, virtual_dataset])
def test_a_dataset_shows_no_other_file(
    way: Callable[[h5py.File, str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "a.hdf5")
    with h5py.File(path, "a") as file:
        del file["observations"]
        way(file, "observations")
    with pytest.raises(UserError, match="lies in other files"):
        read_hdf5(path)


def test_an_external_link_is_not_even_followed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.hdf5")
    os.mkfifo(tmp_path / "pipe")  # whoever opens it waits for ever
    with h5py.File(path, "a") as file:
        del file["rewards"]
        file["rewards"] = h5py.ExternalLink("pipe", "/x")
    with pytest.raises(UserError, match="'rewards' lies in other files"):
        read_hdf5(path)
    with pytest.raises(UserError, match="no file"):
        read_hdf5(tmp_path / "pipe")


@pytest.mark.parametrize("shape", [(1_000_000_000,), (20_000_000_000,)])
def test_rows_that_a_file_cannot_hold_take_no_memory(shape: tuple[int], tmp_path: Path) -> None:
    path = write(tmp_path / "a.hdf5")
    with h5py.File(path, "a") as file:
        for name in ("rewards", "metadata/policy/fc0/weight"):
            file.pop(name, None)
            file.create_dataset(name, shape, "f4", chunks=(1 << 20,))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for read in (read_hdf5, read_d4rl):
        with pytest.raises(UserError, match="does not hold"):
            read(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KB


def test_a_chunk_that_a_file_cannot_hold_is_not_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.hdf5")
    with h5py.File(path, "a") as file:
        del file["rewards"]
        file.create_dataset("rewards", (12,), "f4", chunks=(1 << 28,), maxshape=(None,))
    with pytest.raises(UserError, match="does not hold"):
        read_hdf5(path)


def no_dataspace(file: h5py.File) -> None:
    del file["observations"]
    file["observations"] = h5py.Empty("f4")


def time_type(file: h5py.File) -> None:
    h5py.h5d.create(file["metadata"].id, b"t", h5py.h5t.UNIX_D32LE, h5py.h5s.create_simple((3,)))


def strange_name(file: h5py.File) -> None:
    h5py.h5d.create(file["metadata"].id, b"\xff\xfe", h5py.h5t.NATIVE_FLOAT, h5py.h5s.create_simple((3,)))


@pytest.mark.parametrize("harm", [no_dataspace, time_type, strange_name])
def test_what_numpy_knows_no_word_for_is_one_line(harm: Callable[[h5py.File], None], tmp_path: Path) -> None:
    path = write(tmp_path / "a.hdf5")
    with h5py.File(path, "a") as file:
        file.require_group("metadata")
        harm(file)
    with pytest.raises(UserError) as caught:
        read_hdf5(path)
    assert "\n" not in str(caught.value)
