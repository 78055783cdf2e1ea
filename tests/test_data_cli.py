from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
import pytest
from data_files import arrays, write

from o2o_lightning.cli.data import main
from o2o_lightning.data.check import check, passed
from o2o_lightning.data.hdf5 import file_sha256, read_hdf5
from o2o_lightning.data.spec import load_raw
from o2o_lightning.envs.make import foreign_id
from o2o_lightning.errors import UserError


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A few hundred steps of random actions on Hopper-v5, with simulator states, as D4RL stores them."""
    env: Any = gym.make("Hopper-v5", max_episode_steps=20)
    env.action_space.seed(0)
    columns: dict[str, list[Any]] = {
        key: []
        for key in (
            "observations", "actions", "rewards", "terminals", "timeouts", "next_observations", "qpos", "qvel"
        )
    }  # fmt: skip
    observation, _ = env.reset(seed=0)
    for _ in range(300):
        action = env.action_space.sample()
        columns["qpos"].append(env.unwrapped.data.qpos.copy())
        columns["qvel"].append(env.unwrapped.data.qvel.copy())
        successor, reward, terminated, truncated, _ = env.step(action)
        row = (observation, action, reward, terminated, truncated and not terminated, successor)
        for key, value in zip(columns, row, strict=False):
            columns[key].append(value)
        observation = env.reset()[0] if terminated or truncated else successor
    columns["timeouts"][-1] = not columns["terminals"][-1]
    kinds = {"terminals": np.bool_, "timeouts": np.bool_}
    made = {key: np.array(value, kinds.get(key, np.float32)) for key, value in columns.items()}
    states = {f"infos/{key}": made.pop(key) for key in ("qpos", "qvel")}
    return {**made, **states, "metadata/env_id": "Hopper-v5"}


def statuses(path: Path, **options: Any) -> dict[str, str]:
    return {row.name: row.status for row in check(read_hdf5(path), **options)}


def test_a_good_recording_passes_and_replays_in_its_environment(tmp_path: Path, recorded: dict[str, Any]) -> None:
    found = statuses(write(tmp_path / "a.hdf5", **recorded))
    assert {name: status for name, status in found.items() if status != "ok"} == {}
    assert {"replay: observation", "replay: reward"} <= set(found)


def test_a_recording_without_next_observations_replays_too(tmp_path: Path, recorded: dict[str, Any]) -> None:
    found = statuses(write(tmp_path / "a.hdf5", **recorded | {"next_observations": None}))
    assert found["boundaries"] == "skip" and found["replay: observation"] == "ok"


def test_other_rewards_fail_the_replay(tmp_path: Path, recorded: dict[str, Any]) -> None:
    found = statuses(write(tmp_path / "a.hdf5", **recorded | {"rewards": recorded["rewards"] + 1}))
    assert found["replay: reward"] == "fail" and found["replay: observation"] == "ok"


def test_states_of_another_model_cannot_be_replayed(tmp_path: Path, recorded: dict[str, Any]) -> None:
    path = write(tmp_path / "a.hdf5", **recorded | {"infos/qpos": recorded["infos/qpos"][:, 1:]})
    row = check(read_hdf5(path))[-1]
    assert (row.name, row.status) == ("replay", "warn") and "cannot replay" in row.detail


def test_shuffled_rows_fail_the_boundaries(tmp_path: Path, recorded: dict[str, Any]) -> None:
    path = write(tmp_path / "a.hdf5", **recorded | {"observations": recorded["observations"][::-1]})
    assert statuses(path)["boundaries"] == "fail"


def test_actions_beyond_the_bounds_fail(tmp_path: Path, recorded: dict[str, Any]) -> None:
    path = write(tmp_path / "a.hdf5", **recorded | {"actions": 2 * recorded["actions"]})
    assert statuses(path)["actions"] == "fail"


def test_another_environment_fails(tmp_path: Path, recorded: dict[str, Any]) -> None:
    path = write(tmp_path / "a.hdf5", **recorded)
    assert statuses(path, env_id="Pendulum-v1")["environment"] == "fail"


def test_an_environment_id_that_is_no_name_is_called_so(tmp_path: Path, recorded: dict[str, Any]) -> None:
    path = write(tmp_path / "a.hdf5", **recorded | {"metadata/env_id": 3})
    assert statuses(path)["environment"] == "fail"
    with pytest.raises(UserError, match="its env_id is 3, no name"):
        foreign_id(load_raw(str(path)).env_id, "the dataset")


def test_what_is_odd_but_legal_only_warns(tmp_path: Path) -> None:
    made = arrays(12, (3,), (3,))
    made["observations"][:, 1] = 5
    made["rewards"][:] = 0
    found = check(read_hdf5(write(tmp_path / "a.hdf5", **made)))
    warned = {row.name for row in found if row.status == "warn"}
    assert warned == {"constant columns", "rewards", "flags"} and passed(found)
    assert found[-1].status == "skip" and "names none" in found[-1].detail


def test_check_exits_1_on_nan_and_0_on_a_good_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reward = arrays()["rewards"]
    reward[4] = np.nan
    bad, good = write(tmp_path / "bad.hdf5", rewards=reward), write(tmp_path / "good.hdf5")
    assert main(["check", str(bad), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert not report["passed"] and "NaN at row 4" in report["checks"][0]["detail"]
    assert main(["check", str(good)]) == 0
    assert "finite" in capsys.readouterr().out


def test_check_reports_a_wrong_shape_as_a_failed_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "a.hdf5", actions=np.zeros((12, 2, 1), np.float32))
    assert main(["check", str(path), "--json"]) == 1
    assert "two axes" in json.loads(capsys.readouterr().out)["checks"][0]["detail"]


def test_info_prints_the_manifest_and_the_score(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "embedded:hopper-medium", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["normalized_score"] == pytest.approx(47.4, abs=0.05) and facts["metadata"]["algorithm"] == "SAC"
    assert main(["info", "embedded:hopper-medium"]) == 0
    assert "47.39" in capsys.readouterr().out


def test_info_of_a_dataset_without_an_environment_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(write(tmp_path / "a.hdf5"))]) == 0
    assert "names no environment" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"Pass the --data.env_id that belongs to it"):
        main(["info", str(tmp_path / "a.hdf5"), "--env_id", "Hopper-v5"])


def test_list_prints_specs(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    assert main(["list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {"spec", "env_id", "where", "reference"} == set(rows[0])
    assert main(["list"]) == 0
    assert "d4rl:antmaze-medium-diverse-v2" in capsys.readouterr().out


def test_cut_keeps_the_rows_and_writes_their_provenance(tmp_path: Path, recorded: dict[str, Any]) -> None:
    source, target = write(tmp_path / "a.hdf5", **recorded), tmp_path / "b.hdf5"
    assert main(["cut", str(source), str(target), "--transitions", "50"]) == 0
    whole, part = read_hdf5(source), read_hdf5(target)
    assert len(part) == 50 and part.env_id == "Hopper-v5" and not part.infos and part.next_observations is None
    assert np.array_equal(np.asarray(part.observations), np.asarray(whole.observations)[:50])
    assert np.array_equal(part.truncated[:-1], whole.truncated[:49])
    assert part.terminated[-1] or part.truncated[-1]
    assert part.metadata["cut_source_sha256"] == file_sha256(source)
    assert "first 50 of 300 rows" in part.metadata["cut"]


def test_cut_keeps_infos_and_successors_when_asked(tmp_path: Path, recorded: dict[str, Any]) -> None:
    source, target = write(tmp_path / "a.hdf5", **recorded), tmp_path / "b.hdf5"
    main(["cut", str(source), str(target), "--keep_infos", "--keep_next"])
    part = read_hdf5(target)
    assert set(part.infos) == {"qpos", "qvel"} and part.next_observations is not None
    assert passed(check(part))


def test_cut_leaves_out_infos_that_are_not_by_row_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    infos = {"infos/dt": 0.05, "infos/goal": np.zeros(2), "infos/task": np.array([b"x"] * 12)}
    source, target = write(tmp_path / "a.hdf5", **infos), tmp_path / "b.hdf5"
    main(["cut", str(source), str(target), "--keep_infos", "--transitions", "5"])
    part = read_hdf5(target)
    assert set(part.infos) == {"task"} and part.infos["task"].tolist() == [b"x"] * 5
    assert "infos/dt, infos/goal" in capsys.readouterr().err
    assert "infos/dt, infos/goal" in part.metadata["cut"]


def test_cut_refuses_to_lose_successors_or_to_overwrite(tmp_path: Path, recorded: dict[str, Any]) -> None:
    wrong = recorded["next_observations"] + 1
    source = write(tmp_path / "a.hdf5", **recorded | {"next_observations": wrong})
    with pytest.raises(UserError, match=r"not the next row's observation .* --keep_next"):
        main(["cut", str(source), str(tmp_path / "b.hdf5")])
    assert not (tmp_path / "b.hdf5").exists()
    with pytest.raises(UserError, match="exists already"):
        main(["cut", str(source), str(source)])
    with pytest.raises(UserError, match="at least 1"):
        main(["cut", str(source), str(tmp_path / "b.hdf5"), "--transitions", "0"])
    with pytest.raises(UserError, match=r"folder .* does not exist"):
        main(["cut", str(source), str(tmp_path / "no" / "b.hdf5")])


def test_a_policys_weights_are_not_metadata(tmp_path: Path) -> None:
    path = write(tmp_path / "a.hdf5", **{"metadata/policy/fc0/bias": np.zeros(4), "metadata/seed": 3})
    assert read_hdf5(path).metadata == {"seed": 3}
    main(["cut", str(path), str(tmp_path / "b.hdf5")])
    with h5py.File(tmp_path / "b.hdf5") as file:
        assert "policy" not in file["metadata"]


def test_the_help_needs_no_heavy_import() -> None:
    code = (
        "import sys; from o2o_lightning.cli.data import parser; parser().format_help(); "
        "print(sorted({'torch', 'h5py', 'gymnasium', 'rich'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
