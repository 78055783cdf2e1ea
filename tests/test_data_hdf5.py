from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from data_files import arrays, write
from hypothesis import given, settings
from hypothesis import strategies as st

from o2o_lightning.data.columns import FileColumn
from o2o_lightning.data.ends import timeouts_from_horizon
from o2o_lightning.data.hdf5 import file_sha256, read_hdf5
from o2o_lightning.data.module import OfflineData
from o2o_lightning.data.raw import Said, validate
from o2o_lightning.data.spec import load_raw
from o2o_lightning.errors import UserError


def test_a_file_is_read_as_it_is(tmp_path: Path) -> None:
    path = write(tmp_path / "a.hdf5", **{"metadata/env_id": "Hopper-v5", "infos/qpos": np.ones((12, 6))})
    raw, made = read_hdf5(path), arrays()
    validate(raw)
    assert np.array_equal(np.asarray(raw.observations), made["observations"])
    assert np.array_equal(np.asarray(raw.actions), made["actions"])
    assert np.array_equal(raw.terminated, made["terminals"]) and np.array_equal(raw.truncated, made["timeouts"])
    assert raw.env_id == "Hopper-v5" and raw.next_observations is None and raw.source == str(path)
    assert list(raw.infos) == ["qpos"] and raw.infos["qpos"].shape == (12, 6)
    assert raw.sha256 == file_sha256(path)


def test_float64_values_and_float_flags_and_column_rewards_are_accepted(tmp_path: Path) -> None:
    made = arrays()
    raw = read_hdf5(
        write(
            tmp_path / "a.hdf5",
            observations=made["observations"].astype(np.float64),
            rewards=made["rewards"][:, None],
            terminals=made["terminals"].astype(np.float32)[:, None],
        )
    )
    validate(raw)
    assert raw.rewards.shape == (12,) and raw.rewards.dtype == np.float32
    assert np.array_equal(raw.terminated, made["terminals"])
    assert np.asarray(raw.observations).dtype == np.float32


def test_a_large_file_stays_on_disk_and_reads_the_same(tmp_path: Path) -> None:
    path = write(tmp_path / "a.hdf5")
    lazy, eager = read_hdf5(path, lazy_bytes=0), read_hdf5(path)
    validate(lazy)
    assert isinstance(lazy.observations, FileColumn) and isinstance(eager.observations, np.ndarray)
    assert lazy.observations.shape == eager.observations.shape and len(lazy) == 12
    assert np.array_equal(lazy.observations[slice(3, 7)], eager.observations[3:7])
    assert np.array_equal(np.asarray(lazy.actions), eager.actions)


def test_a_limit_of_minus_one_is_none() -> None:
    limits = [OfflineData("x.hdf5", env_kwargs={"max_episode_steps": steps}).said.limit for steps in (-1, 0, 300)]
    assert limits == [None, None, 300]


def test_without_timeouts_the_environments_horizon_splits_episodes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.hdf5", timeouts=None, **{"metadata/env_id": "Nowhere-v0"})
    assert not read_hdf5(path).truncated.any()
    assert np.flatnonzero(read_hdf5(path, said=Said(limit=5)).truncated).tolist() == [8]
    rows = 450
    long = arrays(rows, (), ())
    path = write(tmp_path / "b.hdf5", **long | {"timeouts": None}, **{"metadata/env_id": "Pendulum-v1"})
    assert np.flatnonzero(read_hdf5(path).truncated).tolist() == [199, 399]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=50), st.integers(1, 10))
def test_no_stretch_without_an_end_is_longer_than_the_horizon(flags: list[bool], horizon: int) -> None:
    terminated = np.array(flags)
    truncated = timeouts_from_horizon(terminated, horizon)
    steps = 0
    for row in range(len(flags)):
        steps += 1
        assert steps <= horizon and truncated[row] == (steps == horizon)
        if terminated[row] or truncated[row]:
            steps = 0


@pytest.mark.parametrize("key", ["observations", "actions", "rewards", "terminals"])
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    path = write(tmp_path / "a.hdf5", **{key: None})
    with pytest.raises(UserError, match=f"'{key}' is missing .found: .*rename or add the array"):
        read_hdf5(path)


@pytest.mark.parametrize(
    ("changes", "phrase"),
    [
        ({"actions": np.zeros((12, 2, 1), np.float32)}, r"'actions' has shape \(12, 2, 1\), and two axes"),
        ({"rewards": np.zeros((12, 2), np.float32)}, r"'rewards' has shape \(12, 2\), and one value a row"),
        ({"rewards": np.zeros(11, np.float32)}, "'rewards' has 11 rows, 'observations' has 12"),
        ({"timeouts": np.zeros(3, np.bool_)}, "'timeouts' has 3 rows"),
        ({"actions": np.zeros((12, 0), np.float32)}, "no columns"),
        (
            {"next_observations": np.zeros((12, 4), np.float32)},
            "'next_observations' has 4 columns, 'observations' has 3",
        ),
        ({"observations": np.zeros((0, 3), np.float32)}, "'observations' is empty"),
    ],
)
def test_a_wrong_shape_is_refused(tmp_path: Path, changes: dict[str, np.ndarray], phrase: str) -> None:
    with pytest.raises(UserError, match=phrase):
        validate(read_hdf5(write(tmp_path / "a.hdf5", **changes)))


@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "infinity")])
@pytest.mark.parametrize("key", ["observations", "actions", "rewards", "next_observations"])
@pytest.mark.parametrize("lazy_bytes", [0, 2**30])
def test_a_value_that_is_not_finite_is_named_with_its_row(
    tmp_path: Path, key: str, value: float, word: str, lazy_bytes: int
) -> None:
    made = arrays()
    column = made.get(key, made["observations"]).copy()
    column[7] = value
    path = write(tmp_path / "a.hdf5", **{key: column})
    with pytest.raises(UserError, match=f"'{key}' has {word} at row 7"):
        validate(read_hdf5(path, lazy_bytes=lazy_bytes))


def test_flags_other_than_0_and_1_are_refused(tmp_path: Path) -> None:
    flags = np.zeros(12)
    flags[5] = np.nan
    with pytest.raises(UserError, match="'terminals' must be 0 or 1, and row 5 is nan"):
        read_hdf5(write(tmp_path / "a.hdf5", terminals=flags))


def test_text_instead_of_numbers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'rewards' holds .*, not numbers"):
        read_hdf5(write(tmp_path / "a.hdf5", rewards=np.array([b"x"] * 12)))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no file at .*nothing\.hdf5"):
        read_hdf5(tmp_path / "nothing.hdf5")


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a directory"):
        read_hdf5(tmp_path)


def test_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.hdf5"
    path.write_bytes(b"not a dataset" * 100)
    with pytest.raises(UserError, match="is not an HDF5 file"):
        read_hdf5(path)


def test_a_truncated_file_is_recognised(tmp_path: Path) -> None:
    path = write(tmp_path / "a.hdf5")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="is truncated"):
        read_hdf5(path)


def test_damaged_data_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "a.hdf5"
    made = arrays(5000, (), ())
    with h5py.File(path, "w") as file:
        for key, value in made.items():
            file.create_dataset(key, data=value, compression="gzip")
        place = file["observations"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[place.byte_offset : place.byte_offset + place.size] = bytes(place.size)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"'observations' cannot be read .*damaged"):
        read_hdf5(path)


def test_a_file_without_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = write(tmp_path / "a.hdf5")
    monkeypatch.setattr(h5py, "File", deny)  # not chmod: root, as in a container, reads everything
    with pytest.raises(UserError, match="no permission to read"):
        read_hdf5(path)


def test_a_file_that_is_being_written_is_said_to_be(tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    path = write(tmp_path / "a.hdf5")
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # as HDF5 locks what it writes
        with pytest.raises(UserError, match=r"being written by another process\. Wait for its end"):
            read_hdf5(path)


# ---- links and metadata ----------------------------------------------------------------------------------------------


def test_links_to_arrays_of_the_file_count_and_others_do_not(tmp_path: Path) -> None:
    path, made = write(tmp_path / "a.hdf5", timeouts=None), arrays()
    write(tmp_path / "other.hdf5")
    with h5py.File(path, "r+") as file:
        file["data/next"] = made["observations"] + 1
        file["next_observations"] = h5py.SoftLink("/data/next")
        file["timeouts"] = file["terminals"]
        del file["rewards"]
        file["rewards"] = h5py.ExternalLink("other.hdf5", "/rewards")
    with pytest.raises(UserError, match="'rewards' lies in other files"):
        read_hdf5(path)
    with h5py.File(path, "r+") as file:
        del file["rewards"]
        file["rewards"] = made["rewards"]
    raw = read_hdf5(path)
    assert np.flatnonzero(raw.truncated).tolist() == [3]
    assert raw.next_observations is not None
    assert np.array_equal(np.asarray(raw.next_observations), made["observations"] + 1)


def test_metadata_may_be_empty_or_an_array_of_one_text(tmp_path: Path) -> None:
    odd = {"note": h5py.Empty("f"), "env_id": np.array([b"Pendulum-v1"]), "authors": np.array([b"A", b"B"])}
    raw = read_hdf5(write(tmp_path / "a.hdf5", **{f"metadata/{key}": value for key, value in odd.items()}))
    assert raw.env_id == "Pendulum-v1"
    assert raw.metadata == {"env_id": "Pendulum-v1", "authors": ["A", "B"]}


# ---- time-outs by the environment ------------------------------------------------------------------------------------


def test_the_chosen_environment_splits_a_file_that_names_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = arrays(450, (), ())
    path = write(tmp_path / "a.hdf5", **made | {"actions": made["actions"][:, :1], "timeouts": None})
    data = OfflineData(str(path), env_id="Pendulum-v1", actions="native")
    data.setup("fit")
    assert data.store is not None
    # steps 200 and 400 are cut by Pendulum's limit, and the last row's successor was not recorded
    assert data.store.td_count == 450 - 3 and data.store.episodes.tolist() == [[0, 200], [200, 400], [400, 450]]
    assert "time limit" not in capsys.readouterr().err
    for _ in range(2):
        load_raw(str(path))
    assert capsys.readouterr().err.count("it counts as one episode. Pass its env_id") == 1


def test_a_dataset_of_time_outs_alone_is_refused(tmp_path: Path) -> None:
    made = arrays(terminals=(), timeouts=tuple(range(12)))
    path = write(tmp_path / "a.hdf5", **made | {"actions": made["actions"][:, :1]})
    with pytest.raises(UserError, match="none of its 12 rows has a known successor"):
        OfflineData(str(path), env_id="Pendulum-v1", actions="native").setup("fit")
