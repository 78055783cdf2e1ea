"""`o2o data make`: a dataset from an environment alone."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
import pytest
import torch

from o2o_lightning.checkpoint.handover import read_handover
from o2o_lightning.checkpoint.run import lock
from o2o_lightning.cli.main import main
from o2o_lightning.data.check import check
from o2o_lightning.data.hdf5 import read_hdf5
from o2o_lightning.data.spec import load_raw
from o2o_lightning.policies.read import read_policy
from o2o_lightning.recording.behaviour import PolicyBehaviour
from o2o_lightning.recording.making import Rollouts, replay
from o2o_lightning.recording.writer import closed, write_dataset
from o2o_lightning.replay.ring import Ring

TINY = [
    "--data.batch_size", "8", "--data.warmup_steps", "50", "--data.eval_every", "40", "--data.eval_episodes", "2",
    "--model.hidden", "[8,8]", "--model.critic_hidden", "[8,8]", "--trainer.log_every_n_steps", "10",
    "checkpoint_every=30",
]  # fmt: skip


def make(*argv: Any) -> int:
    return main(["data", "make", *map(str, argv)])


def columns(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.update({name: item[()]} if isinstance(item, h5py.Dataset) else {}))
    return found


def statuses(path: Path) -> dict[str, str]:
    return {row.name: row.status for row in check(read_hdf5(path))}


def uniform(values: Any) -> bool:
    """Kolmogorov and Smirnov's test against U(0, 1) at the level 0.001."""
    ordered = np.sort(np.asarray(values, np.float64).ravel())
    steps = np.arange(len(ordered) + 1) / len(ordered)
    distance = max(np.abs(ordered - steps[1:]).max(), np.abs(ordered - steps[:-1]).max())
    return bool(distance < 1.95 / math.sqrt(len(ordered)))


# ---- random --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def random_pendulum(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("random") / "pendulum.hdf5"
    assert make("--env", "Pendulum-v1", "--level", "random", "--transitions", 500, "--output", path) == 0
    return path


def test_random_data_is_what_gymnasium_answers_to_its_actions(random_pendulum):
    found = columns(random_pendulum)
    env = gym.make("Pendulum-v1")
    row = 0
    for episode in range(3):
        # the first reset is seeded, the later ones go on with the environment's generator
        observation, _ = env.reset(seed=17 if episode == 0 else None)
        truncated = False
        while not truncated and row < 500:
            assert np.array_equal(observation, found["observations"][row])
            observation, reward, terminated, truncated, _ = env.step(found["actions"][row])
            assert np.array_equal(observation, found["next_observations"][row])
            assert (np.float32(reward), terminated) == (found["rewards"][row], found["terminals"][row])
            assert (truncated or row == 499) == found["timeouts"][row]
            row += 1
    assert row == 500


def test_random_data_has_d4rls_layout(random_pendulum):
    found = columns(random_pendulum)
    for key in ("observations", "actions", "rewards", "next_observations", "infos/action_log_probs"):
        assert found[key].dtype == np.float32 and len(found[key]) == 500, key
    assert found["terminals"].dtype == found["timeouts"].dtype == np.bool_
    assert not (found["terminals"] & found["timeouts"]).any()
    assert np.flatnonzero(found["timeouts"]).tolist() == [199, 399, 499]
    assert np.allclose(found["infos/action_log_probs"], math.log(1 / 4))  # uniform over [-2, 2]
    assert uniform(found["actions"] / 4 + 0.5)
    texts = {key: found[f"metadata/{key}"].decode() for key in ("env_id", "algorithm", "level", "source", "protocol")}
    assert (texts["env_id"], texts["level"]) == ("Pendulum-v1", "random") and found["metadata/seed"] == 0
    assert "gymnasium" in found["metadata/versions"].decode()
    with h5py.File(random_pendulum) as file:
        assert all(file[key].compression == "gzip" and file[key].shuffle for key in ("observations", "terminals"))


def test_random_data_passes_its_check(random_pendulum):
    assert set(statuses(random_pendulum).values()) <= {"ok", "skip"}


def test_making_ends_with_statistics_and_the_files_digest(tmp_path, capsys):
    path = tmp_path / "a.hdf5"
    argv = ["--env_id", "Pendulum-v1", "--level", "random", "--transitions", 200, "--output", path]
    assert make(*argv, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    with h5py.File(path) as file:
        assert facts["return_mean"] == pytest.approx(file["rewards"][()].astype(np.float64).sum())
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.hdf5"]


def test_simulator_states_of_random_data_replay(tmp_path):
    path = tmp_path / "hopper.hdf5"
    assert make("--env", "Hopper-v5", "--level", "random", "--transitions", 300, "--output", path) == 0
    found = statuses(path)
    assert found["replay: observation"] == found["replay: reward"] == "ok" and "fail" not in found.values()


def test_states_that_are_not_all_there_is_are_not_replayed(tmp_path):
    # the pen's target orientation is neither in qpos nor in qvel
    pytest.importorskip("gymnasium_robotics")
    path = tmp_path / "pen.hdf5"
    assert make("--env", "AdroitHandPen-v1", "--level", "random", "--transitions", 20, "--output", path) == 0
    found = statuses(path)
    assert found["replay"] == "skip" and "fail" not in found.values()
    assert columns(path)["infos/qpos"].shape == (20, 30)


def test_another_seed_makes_another_dataset_and_the_same_one_the_same_bytes(tmp_path, random_pendulum):
    digests = []
    for seed in (0, 1):
        path = tmp_path / f"{seed}.hdf5"
        argv = ["--env", "Pendulum-v1", "--level", "random", "--transitions", 500, "--seed", seed]
        assert make(*argv, "--output", path) == 0
        digests.append(path.read_bytes())
    assert digests[0] == random_pendulum.read_bytes() and digests[0] != digests[1]


# ---- trained ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A `medium` and a `medium-replay` dataset of one tiny run on Hopper, and what the run's environment returned."""
    folder = tmp_path_factory.mktemp("trained")
    seen: list[tuple[Any, ...]] = []
    performed: list[Any] = []
    add, log_prob = Ring.add, PolicyBehaviour.log_prob

    def keep(self: Ring, *row: Any) -> None:
        seen.append(row)
        add(self, *row)

    def watch(self: PolicyBehaviour, observations: Any, noise: Any) -> Any:
        found = log_prob(self, observations, noise)
        performed.append((self.act(observations[0], noise[0]), found))
        return found

    run = ["--env", "Hopper-v5", "--run_dir", folder / "run", "--stop_return", -1000, "--train_steps", 300, *TINY]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ring, "add", keep)
        patch.setattr(PolicyBehaviour, "log_prob", watch)
        assert make(*run, "--level", "medium-replay", "--output", folder / "replay.hdf5") == 0
    assert make(*run, "--level", "medium", "--transitions", 400, "--output", folder / "medium.hdf5") == 0
    assert make(*run, "--level", "medium-replay", "--transitions", 30, "--output", folder / "newest.hdf5") == 0
    return {"folder": folder, "seen": seen, "performed": performed}


def test_training_ends_at_the_first_evaluation_that_reaches_the_goal(trained):
    # updates begin after 50 steps, evaluations come every 40: the first of an updated policy is at 80
    found = columns(trained["folder"] / "replay.hdf5")
    assert found["metadata/training_steps"] == 80 == len(found["rewards"])
    assert "return -1000" in found["metadata/stopped_at"].decode()
    assert found["metadata/sampled_return"] > -1000


def test_a_replay_is_what_the_training_environment_returned(trained):
    found = columns(trained["folder"] / "replay.hdf5")
    seen = trained["seen"]
    assert len(seen) == 80
    for key, index in (("observations", 0), ("rewards", 2), ("next_observations", 3)):
        assert np.array_equal(found[key], np.array([row[index] for row in seen], np.float32)), key
    assert np.allclose(found["actions"], np.array([row[1] for row in seen]), atol=1e-6)
    assert found["terminals"].tolist() == [row[4] for row in seen] and found["terminals"].sum() > 1
    assert found["timeouts"].tolist() == [row[5] for row in seen[:-1]] + [not seen[-1][4]]


def test_a_replay_of_a_simulator_passes_its_check(trained):
    found = statuses(trained["folder"] / "replay.hdf5")
    assert found["replay: observation"] == found["replay: reward"] == "ok" and "fail" not in found.values()


def test_a_replays_densities_are_those_of_the_policy_at_that_moment(trained):
    found = columns(trained["folder"] / "replay.hdf5")
    assert np.allclose(found["infos/action_log_probs"][:51], -3 * math.log(2))  # uniform over [-1, 1]³
    assert len(trained["performed"]) == 80 - 51
    for row, (action, log_prob) in enumerate(trained["performed"], 51):
        assert np.array_equal(action, trained["seen"][row][1])
        assert found["infos/action_log_probs"][row] == log_prob[0]


def test_a_replay_is_cut_to_its_newest_rows(trained):
    whole, newest = (columns(trained["folder"] / f"{name}.hdf5") for name in ("replay", "newest"))
    for key, values in whole.items():
        if not key.startswith("metadata/"):
            assert np.array_equal(values[-30:], newest[key]), key


def test_the_file_holds_the_policy_that_acted(trained):
    path = trained["folder"] / "medium.hdf5"
    source = read_handover(trained["folder"] / "run/online/checkpoints/last.ckpt")
    imported, states = read_policy(str(path), "d4rl"), columns(path)["observations"]
    assert imported.env_id == "Hopper-v5" and imported.family == "squashed_gaussian"
    assert np.allclose(imported.actions(states), source.build_actor().act(states), atol=1e-6)
    assert np.allclose(imported.build_actor().act(states), source.build_actor().act(states), atol=1e-6)


def test_rollouts_are_samples_of_the_policy_in_the_file(trained):
    found = columns(trained["folder"] / "medium.hdf5")
    assert len(found["rewards"]) == 400
    assert set(statuses(trained["folder"] / "medium.hdf5").values()) <= {"ok", "skip", "warn"}
    x = found["observations"].astype(np.float64)
    for layer in ("fc0", "fc1"):
        weight, bias = (found[f"metadata/policy/{layer}/{part}"] for part in ("weight", "bias"))
        x = np.maximum(x @ weight.T + bias, 0)
    mean, log_std = (
        x @ found[f"metadata/policy/{head}/weight"].T + found[f"metadata/policy/{head}/bias"]
        for head in ("last_fc", "last_fc_log_std")
    )
    action = found["actions"].astype(np.float64)
    inside = (np.abs(action) < 0.99).all(axis=1)
    pre_tanh = np.arctanh(action[inside])
    density = torch.distributions.Normal(*(torch.from_numpy(part[inside]) for part in (mean, np.exp(log_std))))
    samples = torch.from_numpy(pre_tanh)
    assert inside.sum() > 300 and uniform(density.cdf(samples).numpy())
    expected = (density.log_prob(samples).numpy() - np.log1p(-(action[inside] ** 2))).sum(1)
    assert np.allclose(found["infos/action_log_probs"][inside], expected, atol=1e-3)


def test_a_checkpoints_policy_is_rolled_out_as_it_is(tmp_path, chain):
    # TD3's policy is deterministic: its only action, no density
    path, checkpoint = tmp_path / "a.hdf5", chain["align"].checkpoint
    assert make("--policy", checkpoint, "--transitions", 50, "--output", path) == 0
    found, source = columns(path), read_handover(checkpoint)
    observation = source.build_normalizer()(torch.from_numpy(found["observations"]))
    assert np.allclose(found["actions"], 2 * source.build_actor().mode(observation).detach().numpy(), atol=1e-5)
    assert "infos/action_log_probs" not in found and found["metadata/env_id"] == b"Pendulum-v1"
    assert found["metadata/policy_sha256"].decode() == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    imported = read_policy(str(path), "d4rl")
    assert np.allclose(2 * imported.actions(found["observations"]), found["actions"], atol=1e-5)


def test_a_goal_that_is_not_reached_is_reached_with_more_steps(tmp_path, capsys):
    run = ["--env", "Pendulum-v1", "--level", "medium", "--transitions", 50, "--stop_return", -2000, *TINY]
    assert make(*run, "--train_steps", 300, "--output", tmp_path / "once.hdf5") == 0
    capsys.readouterr()
    assert make(*run, "--train_steps", 45, "--output", tmp_path / "twice.hdf5") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("o2o: --train_steps 45") and "return -2000" in error and "larger --train_steps" in error
    assert make(*run, "--train_steps", 300, "--output", tmp_path / "twice.hdf5") == 0
    assert (tmp_path / "once.hdf5").read_bytes() == (tmp_path / "twice.hdf5").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["once.hdf5", "twice.hdf5"]


def test_a_simulator_that_fails_says_to_make_again(tmp_path, monkeypatch, capsys):
    from gymnasium.envs.classic_control.pendulum import PendulumEnv

    def fails(self: Any, action: Any) -> Any:
        raise RuntimeError("no contact")

    monkeypatch.setattr(PendulumEnv, "step", fails)
    assert make(*RANDOM, "--output", tmp_path / "a.hdf5") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "no contact" in error and error.endswith("Here the same `o2o data make` does.")


def test_minari_reads_the_same_rows(tmp_path, monkeypatch, random_pendulum):
    minari = pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.chdir(tmp_path)
    argv = ["--env", "Pendulum-v1", "--level", "random", "--transitions", 500, "--format", "minari"]
    assert make(*argv, "--output", "pendulum/random-v0") == 0
    raw, expected = load_raw("minari:pendulum/random-v0"), columns(random_pendulum)
    for key in ("observations", "actions", "rewards", "next_observations"):
        assert np.array_equal(np.asarray(getattr(raw, key)), expected[key]), key
    assert np.array_equal(raw.terminated, expected["terminals"]) and np.array_equal(raw.truncated, expected["timeouts"])
    dataset = minari.load_dataset("pendulum/random-v0")
    assert (dataset.total_steps, dataset.total_episodes, dataset.env_spec.id) == (500, 3, "Pendulum-v1")
    assert dataset.storage.metadata["o2o_seed"] == 0 and "uniformly random" in dataset.storage.metadata["description"]
    assert make(*argv, "--output", "pendulum/random-v0") == 2
    assert [path.name for path in tmp_path.iterdir()] == ["minari"]


def test_a_minari_dataset_that_was_half_written_is_written_again_and_anothers_is_not(tmp_path, monkeypatch, capsys):
    minari = pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.chdir(tmp_path)
    create, record = minari.create_dataset_from_buffers, Rollouts.record
    target = tmp_path / "minari/a-v0"

    def interrupted(*args: Any, **kwargs: Any) -> None:
        (target / "data").mkdir(parents=True)
        raise KeyboardInterrupt

    def meanwhile(self: Rollouts, *args: Any) -> None:
        record(self, *args)
        (tmp_path / "minari/b-v0/data").mkdir(parents=True)

    argv = [*RANDOM, "--format", "minari", "--output"]
    monkeypatch.setattr(minari, "create_dataset_from_buffers", interrupted)
    assert make(*argv, "a-v0") == 130 and (tmp_path / "a-v0.making").is_dir()
    monkeypatch.setattr(minari, "create_dataset_from_buffers", create)
    assert make(*argv, "a-v0") == 0 and minari.load_dataset("a-v0").total_steps == 10
    monkeypatch.setattr(Rollouts, "record", meanwhile)
    assert make(*argv, "b-v0") == 2 and "nothing is written over" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "minari/b-v0").iterdir()] == ["data"]


# ---- parts -----------------------------------------------------------------------------------------------------------


def test_a_buffer_that_went_round_is_written_oldest_first():
    buffer = Ring(5, 1, 1)
    for step in range(8):
        observation = np.array([step], np.float32)
        buffer.add(observation, np.zeros(1, np.float32), float(step), observation + 1, step == 6, False)
    record = {"qpos": np.arange(8, dtype=np.float32)[:, None]}
    low, high = -np.ones(1, np.float32), np.ones(1, np.float32)
    found = replay(buffer.state(), record, low, high, 4)
    for key in ("rewards", "observations", "infos/qpos"):
        assert found[key].ravel().tolist() == [4, 5, 6, 7], key
    assert found["terminals"].tolist() == [False, False, True, False]


def test_both_flags_of_a_step_are_kept_and_the_last_row_ends_its_episode(tmp_path):
    flags = {"terminals": np.array([1, 1, 0, 0], np.bool_), "timeouts": np.array([0, 1, 0, 0], np.bool_)}
    rows = {"rewards": np.arange(4, dtype=np.float32), **flags}
    blocks = [{key: values[part] for key, values in rows.items()} for part in (slice(0, 1), slice(1, 4))]
    write_dataset(tmp_path / "a.hdf5", 4, closed(blocks), {}, {})
    found = columns(tmp_path / "a.hdf5")
    assert found["terminals"].tolist() == [True, True, False, False]
    assert found["timeouts"].tolist() == [False, True, False, True]


# ---- refusals --------------------------------------------------------------------------------------------------------

RANDOM = ["--env", "Pendulum-v1", "--level", "random", "--transitions", "10"]


@pytest.mark.parametrize("argv, words", [
    (["--env", "Hoper-v5", *RANDOM[2:]], "Hoper-v5"),
    (["--env", "CartPole-v1", *RANDOM[2:]], "Discrete"),
    ([*RANDOM[:5], "0"], "--transitions 0"),
    (RANDOM[:4], "--transitions N"),
    (RANDOM[2:], "--env ID"),
    (["--env", "Pendulum-v1", "--transitions", "10"], "--level"),
    ([*RANDOM, "--stop_return", "1"], "--stop_return: nothing is trained"),
    ([*RANDOM, "--data.batch_size", "8"], "--data.batch_size: nothing is trained"),
    ([*RANDOM, "--format", "minari", "--output", "no version"], "no version"),
    ([*RANDOM, "--output", "missing/a.hdf5"], "missing"),
    ([*RANDOM[:3], "medium", *RANDOM[4:]], "--stop_return R"),
    ([*RANDOM[:3], "expert", *RANDOM[4:], "--stop_score", "3"], "--stop_return R"),
    ([*RANDOM[:3], "medium", *RANDOM[4:], "--stop_score", "3", "--stop_return", "3"], "one goal"),
    ([*RANDOM[:3], "medium-replay", "--policy", "a.ckpt"], "--policy"),
    ([*RANDOM[:3], "expert", *RANDOM[4:], "--policy", "a.ckpt"], "a.ckpt"),
    ([*RANDOM[:3], "expert", *RANDOM[4:], "--train_steps", "0"], "--train_steps 0"),
    ([*RANDOM[:3], "expert", *RANDOM[4:], "--data.bach_size", "8"], "did you mean 'batch_size'"),
    ([*RANDOM[:3], "expert", *RANDOM[4:], "online=td3"], "sets it itself"),
    ([*RANDOM[:3], "expert", *RANDOM[4:], "seed_everything=3"], "seed_everything=3: `o2o data make` sets it itself"),
    ([*RANDOM[:3], "expert", *RANDOM[4:], "--data.init_args.env_steps", "9"], "sets it itself"),
])  # fmt: skip
def test_bad_input_is_refused_in_one_line_and_leaves_nothing(argv, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "elsewhere"))
    assert make(*argv) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("o2o")]
    assert len(lines) == 1 and words in lines[0]
    assert [path.name for path in tmp_path.iterdir() if path.name != "elsewhere"] == []


def test_an_existing_output_is_never_written_over(tmp_path, capsys):
    path = tmp_path / "a.hdf5"
    path.write_bytes(b"mine")
    assert make(*RANDOM, "--output", path) == 2
    assert "nothing is written over" in capsys.readouterr().err
    assert path.read_bytes() == b"mine" and [entry.name for entry in tmp_path.iterdir()] == ["a.hdf5"]


def test_a_directory_that_was_begun_for_another_request_is_refused(tmp_path, capsys):
    path = tmp_path / "a.hdf5"
    run = ["--env", "Pendulum-v1", "--level", "medium", "--transitions", 50, "--stop_return", 0, *TINY]
    assert make(*run, "--train_steps", 10, "--output", path) == 1
    assert make(*run, "--train_steps", 10, "--output", path, "--seed", 3) == 2
    assert "begun with seed 0, this is 3" in capsys.readouterr().err
    assert (tmp_path / "a.hdf5.making").is_dir()


def test_two_processes_do_not_make_one_output(tmp_path, capsys):
    lock(tmp_path / "a.hdf5.making")
    from o2o_lightning.checkpoint import run

    held = run._held.pop((tmp_path / "a.hdf5.making").resolve())
    try:
        assert make(*RANDOM, "--output", tmp_path / "a.hdf5") == 2
        assert "another process is making it" in capsys.readouterr().err
    finally:
        held.release()
