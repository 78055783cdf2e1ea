"""Datasets as other libraries write them: layouts, flags, units of actions; read as what they mean, or asked about."""

import json
import types
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
import pytest
import torch
from data_files import env_of, write

from o2o_lightning.cli.main import main
from o2o_lightning.data.build import build_store
from o2o_lightning.data.check import check
from o2o_lightning.data.hdf5 import read_hdf5
from o2o_lightning.data.minari_source import _collect
from o2o_lightning.data.module import OfflineData
from o2o_lightning.data.raw import Said, check_shapes
from o2o_lightning.envs.make import EnvSpec
from o2o_lightning.errors import UserError
from o2o_lightning.replay.ring import Ring
from o2o_lightning.replay.table import TERMINATED

STEPS, EPISODES = 5, 4
ROWS = STEPS * EPISODES
LAST = np.arange(ROWS) % STEPS == STEPS - 1


class Five(gym.Env[Any, Any]):
    """Episodes of five steps, actions of ±2."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = gym.spaces.Box(-2, 2, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(3, np.float32), {}

    def step(self, action: Any) -> Any:
        return np.zeros(3, np.float32), 0.0, False, False, {}


@pytest.fixture(scope="module", autouse=True)
def five() -> Any:
    gym.register("O2OFive-v0", Five, max_episode_steps=STEPS)
    yield
    del gym.registry["O2OFive-v0"]


def columns(**changes: Any) -> dict[str, Any]:
    """Four episodes of five steps; each observation names its row, each successor is its own row's plus one."""
    observation = np.arange(ROWS, dtype=np.float32)[:, None] + np.array([0, 100, 200], np.float32)
    observation += 1000 * (np.arange(ROWS) // STEPS)[:, None]
    made: dict[str, Any] = {
        "observations": observation,
        "next_observations": observation + 1,
        "actions": np.random.default_rng(0).uniform(-2, 2, (ROWS, 2)).astype(np.float32),
        "rewards": np.arange(ROWS, dtype=np.float32),
        "terminals": np.zeros(ROWS, np.bool_),
        "timeouts": LAST,
    }
    return {key: value for key, value in (made | changes).items() if value is not None}


def written(path: Path, named: bool = True, **changes: Any) -> Path:
    name = {"metadata/env_id": "O2OFive-v0"} if named else {}
    return write(path, **dict.fromkeys(("terminals", "timeouts")) | columns(**changes) | name)


def ends(path: Path, **said: Any) -> tuple[list[int], list[int]]:
    raw = read_hdf5(path, said=Said(**said))
    check_shapes(raw)
    return np.flatnonzero(raw.terminated).tolist(), np.flatnonzero(raw.truncated).tolist()


LASTS = np.flatnonzero(LAST).tolist()

# ---- layouts ---------------------------------------------------------------------------------------------------------


def same_rows(path: Path, said: Said = Said(), next_observations: bool = False) -> None:
    raw, made = read_hdf5(path, said=said), columns()
    check_shapes(raw)
    for key in ("observations", "actions", "rewards"):
        assert np.array_equal(np.asarray(getattr(raw, key)), made[key]), key
    assert (raw.next_observations is not None) == next_observations
    if next_observations:
        assert np.array_equal(np.asarray(raw.next_observations), made["next_observations"])


def test_d3rlpy_1_ends_episodes_by_its_own_array(tmp_path):
    success = np.arange(ROWS) == 9
    path = tmp_path / "a.h5"
    made = columns(timeouts=None, next_observations=None, terminals=success.astype(np.float32))
    write(path, **made, timeouts=None, episode_terminals=LAST.astype(np.float32), discrete_action=False, version="1.0")
    same_rows(path)
    assert ends(path) == ([9], [4, 14, 19])


def d3rlpy_2(path: Path, **changes: Any) -> Path:
    made = columns()
    with h5py.File(path, "w") as file:
        for i in range(EPISODES):
            rows = slice(i * STEPS, (i + 1) * STEPS)
            file[f"observations_{i}"], file[f"actions_{i}"] = made["observations"][rows], made["actions"][rows]
            file[f"rewards_{i}"], file[f"terminated_{i}"] = made["rewards"][rows, None], i == 1
        file["total_size"], file["version"] = EPISODES, "2.1"
        for key, value in changes.items():
            if key in file:
                del file[key]
            if value is not None:
                file[key] = value
    return path


def test_d3rlpy_2_is_read_episode_by_episode(tmp_path):
    path = d3rlpy_2(tmp_path / "a.h5")
    same_rows(path)
    assert ends(path) == ([9], [4, 14, 19])


@pytest.mark.parametrize(("changes", "said"), [
    ({"rewards_2": None}, "'rewards_2' is missing"),
    ({"actions_2": np.zeros((5, 3), np.float32)}, r"'actions' of episode 2 has shape \(5, 3\), not \(5, 2\)"),
    ({"rewards_3": np.zeros(4)}, "episode 3 has shape"),
    ({"total_size": 10**12}, "'total_size' says 1000000000000 episodes"),
    ({"total_size": np.zeros(3)}, "'total_size' says"),
    ({"actions_0": np.zeros((5, 2), np.int64)}, "discrete actions"),
])  # fmt: skip
def test_what_is_wrong_in_an_episode_is_named(tmp_path, changes, said):
    with pytest.raises(UserError, match=said):
        read_hdf5(d3rlpy_2(tmp_path / "a.h5", **changes))


def robomimic(path: Path, parts: dict[str, Any]) -> Path:
    made = columns()
    with h5py.File(path, "w") as file:
        for i in range(EPISODES):
            rows, demo = slice(i * STEPS, (i + 1) * STEPS), file.create_group(f"data/demo_{i}")
            for name, part in parts.items():
                demo[f"obs/{name}"] = made["observations"][rows, part] if isinstance(part, list) else part
                demo[f"next_obs/{name}"] = made["next_observations"][rows, part] if isinstance(part, list) else part
            demo["actions"], demo["rewards"], demo["dones"] = made["actions"][rows], made["rewards"][rows], LAST[rows]
    return path


def test_robomimic_is_read_demonstration_by_demonstration(tmp_path):
    path = robomimic(tmp_path / "a.hdf5", {"state": [0, 1, 2]})
    same_rows(path, next_observations=True)
    assert ends(path) == (LASTS, [])  # nothing says that they are time-outs
    assert ends(path, limit=STEPS) == ([], LASTS)  # the step limit does
    assert ends(path, limit=STEPS, terminals="terminated") == (LASTS, LASTS)


def test_robomimics_parts_are_joined_in_the_order_asked_for_and_only_then(tmp_path):
    parts = {"object": [2], "camera": np.zeros((5, 8, 8, 3), np.uint8), "arm": [0, 1]}
    path = robomimic(tmp_path / "a.hdf5", parts)
    same_rows(path, Said(layout=("arm", "object")), next_observations=True)
    with pytest.raises(UserError, match=r"could be joined in any order: arm, object\. Name those .*observation_layout"):
        read_hdf5(path)
    with pytest.raises(UserError, match="names arm, camera; it has arm, object"):
        read_hdf5(path, said=Said(layout=("arm", "camera")))
    target = tmp_path / "b.hdf5"
    assert main(["data", "cut", str(path), str(target), "--keep_next", "--layout", "arm,object"]) == 0
    same_rows(target, next_observations=True)


def test_demonstrations_are_in_the_order_of_their_numbers(tmp_path):
    path = robomimic(tmp_path / "a.hdf5", {"state": [0, 1, 2]})
    with h5py.File(path, "r+") as file:
        file.move("data/demo_3", "data/demo_10")
    same_rows(path, next_observations=True)


def test_other_names_of_the_columns_are_known(tmp_path):
    made = columns()
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        for key, name in (("observations", "obs"), ("actions", "action"), ("rewards", "reward"),
                          ("next_observations", "next_obs"), ("terminals", "terminated"),
                          ("timeouts", "truncated")):  # fmt: skip
            file[name] = made[key]
    same_rows(tmp_path / "a.hdf5", next_observations=True)
    assert ends(tmp_path / "a.hdf5") == ([], LASTS)


def test_what_is_missing_is_said_of_a_file_of_thousands_of_arrays_in_one_short_line(tmp_path):
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        for i in range(3000):
            file[f"array_{i}"] = 0
    with pytest.raises(UserError, match=r"'observations' is missing .*array_0, .*and 2992 more") as found:
        read_hdf5(tmp_path / "a.hdf5")
    assert len(str(found.value)) < 400


def test_the_inside_of_a_minari_dataset_is_recognised(tmp_path):
    with h5py.File(tmp_path / "main_data.hdf5", "w") as file:
        file["episode_0/observations"] = np.zeros((3, 2))
    with pytest.raises(UserError, match=r"inside of a Minari dataset\. Name it as Minari does: minari:ID"):
        read_hdf5(tmp_path / "main_data.hdf5")


def test_one_column_may_be_without_its_axis(tmp_path):
    path = write(tmp_path / "a.hdf5", actions=np.linspace(-1, 1, 12, dtype=np.float32))
    for lazy_bytes in (0, 2**30):
        raw = read_hdf5(path, lazy_bytes=lazy_bytes)
        check_shapes(raw)
        assert raw.actions.shape == (12, 1) and np.asarray(raw.actions[slice(2, 4)]).shape == (2, 1)


def minari(space: Any = None) -> Any:
    made = {
        "rewards": np.arange(5.0)[:, None], "observations": np.zeros((6, 3), "f4"), "actions": np.zeros((5, 1), "f4"),
        "terminations": np.eye(5, dtype=bool)[4], "truncations": np.eye(5, dtype=bool)[4],
    }  # fmt: skip
    episode = types.SimpleNamespace(**made)
    return types.SimpleNamespace(
        iterate_episodes=lambda: iter([episode]), id="x", minari_version="0.5", env_spec=None, observation_space=space,
        storage=types.SimpleNamespace(metadata={}),
    )  # fmt: skip


def test_minaris_rewards_may_be_a_column_and_its_flags_are_independent():
    raw = _collect(minari(), "minari:x")
    check_shapes(raw)
    assert raw.rewards.tolist() == [0, 1, 2, 3, 4]
    assert raw.terminated.tolist() == raw.truncated.tolist() == [False] * 4 + [True]
    with pytest.raises(UserError, match="is an image"):
        _collect(minari(gym.spaces.Box(0, 255, (8, 8, 3), np.uint8)), "minari:x")


# ---- terminated, truncated, done -------------------------------------------------------------------------------------


def test_a_row_with_both_flags_is_terminal_from_a_dataset_as_from_an_environment(tmp_path, capsys):
    path = written(tmp_path / "a.hdf5", named=False, terminals=LAST)
    store = build_store(read_hdf5(path), None)
    ring = Ring(1, 3, 1)
    ring.add(np.zeros(3), np.zeros(1), 0.0, np.zeros(3), True, True)
    assert store.manifest.terminated == EPISODES and bool(ring[TERMINATED].all())
    assert store["next", "terminated"].tolist() == LAST.tolist()
    assert "4 rows are terminal and time-outs in one: they count as terminal" in capsys.readouterr().err


def test_a_terminal_state_at_the_limit_is_terminal_where_other_episodes_reach_it_without(tmp_path):
    path = written(tmp_path / "a.hdf5", terminals=np.arange(ROWS) == 9)
    assert ends(path) == ([9], LASTS)


def test_flags_that_are_always_set_at_the_limit_mean_the_end_of_an_episode(tmp_path, capsys):
    done = LAST | (np.arange(ROWS) == 7)
    for name, timeouts in (("a", LAST), ("b", None)):
        path = written(tmp_path / f"{name}.hdf5", terminals=done, timeouts=timeouts, next_observations=None)
        assert ends(path)[0] == ([7] if timeouts is not None else [7, 9])  # a limit counts from the last end
        assert "of its ends are terminal and time-outs in one" in capsys.readouterr().err
        assert ends(path, terminals="terminated")[0] == np.flatnonzero(done).tolist()


def test_dones_alone_are_split_by_the_limit_and_count_as_terminal_without_one(tmp_path, capsys):
    short = np.isin(np.arange(ROWS), [4, 6, 11, 16, 19])  # episodes of 5, 2, 5, 5 and 3 steps
    path = written(tmp_path / "a.hdf5", named=False, terminals=None, timeouts=None, next_observations=None, dones=short)
    assert ends(path) == ([4, 6, 11, 16, 19], [])
    assert "its ends do not say which are time-outs" in capsys.readouterr().err
    assert ends(path, limit=STEPS) == ([6, 19], [4, 11, 16])
    assert "3 of its ends are terminal and time-outs in one" in capsys.readouterr().err


def test_recorded_successors_end_short_episodes_where_no_flag_does(tmp_path, capsys):
    path = written(tmp_path / "a.hdf5", named=False, timeouts=None)
    assert ends(path) == ([], [4, 9, 14])  # the recording's end is the last episode's
    assert (
        "3 of its rows are not followed by their next observation: they count as time-outs" in capsys.readouterr().err
    )
    store = build_store(read_hdf5(path), None)
    assert store.episodes.tolist() == [[0, 5], [5, 10], [10, 15], [15, 20]]


def test_what_the_package_records_says_what_its_flags_and_actions_mean(tmp_path):
    path = tmp_path / "a.hdf5"
    made = ["data", "make", "--env", "Pendulum-v1", "--level", "random", "--transitions", "30", "--output", str(path)]
    assert main([*made, "--env_kwargs", "{max_episode_steps: 10, g: 5.0}"]) == 0
    raw = read_hdf5(path)
    assert (raw.units, raw.metadata["terminals"]) == ("native", "terminated")
    assert np.flatnonzero(raw.truncated).tolist() == [9, 19, 29]
    assert json.loads(raw.metadata["env_kwargs"]) == {"g": 5.0, "max_episode_steps": 10}


# ---- units of actions ------------------------------------------------------------------------------------------------

UNIT = np.random.default_rng(1).uniform(-1, 1, (ROWS, 2)).astype(np.float32)
UNIT[0] = 1, -1


def stored(path: Path, **options: Any) -> torch.Tensor:
    data = OfflineData(str(path), **options)
    data.setup("fit")
    assert data.store is not None
    return data.store["action"]


def test_actions_that_could_be_in_either_unit_are_asked_about_and_then_taken_at_their_word(tmp_path):
    path = written(tmp_path / "a.hdf5", actions=UNIT)
    with pytest.raises(
        UserError, match=r"no action leaves \[-1, 1\] though the bounds of O2OFive-v0 are \[-2, 2\]: nor"
    ):
        stored(path)
    assert torch.equal(stored(path, actions="unit"), torch.from_numpy(UNIT))
    torch.testing.assert_close(stored(path, actions="native"), torch.from_numpy(UNIT / 2))
    row = next(row for row in check(read_hdf5(path)) if row.name == "actions")
    assert row.status == "warn" and "normalised actions? Pass --data.actions unit" in row.detail
    assert main(["data", "check", str(path), "--actions", "unit", "--json"]) == 0


def test_a_file_that_says_its_units_is_not_asked(tmp_path):
    for units, scale in (("unit", 1), ("native", 2)):
        path = written(tmp_path / f"{units}.hdf5", actions=UNIT, **{"metadata/action_units": units})
        torch.testing.assert_close(stored(path), torch.from_numpy(UNIT / scale))


def test_actions_far_inside_are_native_which_is_said(tmp_path, capsys):
    path = written(tmp_path / "a.hdf5", actions=UNIT * 0.3)
    torch.testing.assert_close(stored(path), torch.from_numpy(UNIT * 0.15))
    assert "no action is beyond ±0.3, though" in capsys.readouterr().err


def test_actions_beyond_the_bounds_are_refused_or_clipped_as_the_environment_does(tmp_path):
    path = written(tmp_path / "a.hdf5", actions=UNIT * 3)
    with pytest.raises(UserError, match=r"leave the bounds of O2OFive-v0, \[-2, 2\].*--data\.actions clip"):
        stored(path)
    torch.testing.assert_close(stored(path, actions="clip"), torch.from_numpy((UNIT * 1.5).clip(-1, 1)))
    with pytest.raises(UserError, match=r"leave the bounds of \[-1, 1\].*native or clip"):
        stored(path, actions="unit")
    row = next(row for row in check(read_hdf5(path)) if row.name == "actions")
    assert row.status == "fail" and "--data.actions clip" in row.detail


def test_normalised_actions_of_a_narrow_environment_are_recognised_by_leaving_its_bounds(tmp_path):
    raw = read_hdf5(written(tmp_path / "a.hdf5", named=False, actions=UNIT))
    narrow: EnvSpec = env_of(-0.4, 0.4)
    with pytest.raises(UserError, match=r"leave the bounds of Toy-v0, \[-0\.4, 0\.4\].*--data\.actions unit"):
        build_store(raw, narrow)
    assert (
        np.abs(np.asarray(build_store(read_hdf5(tmp_path / "a.hdf5", said=Said(units="unit")), narrow)["action"])).max()
        == 1
    )


def test_whole_numbers_are_taken_for_discrete_actions(tmp_path):
    with pytest.raises(UserError, match="'actions' holds int64: discrete actions"):
        read_hdf5(written(tmp_path / "a.hdf5", actions=np.zeros((ROWS, 2), np.int64)))
