from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from data_files import write
from gymnasium import spaces
from hypothesis import example, given, settings
from hypothesis import strategies as st

from o2o_lightning.data.build import build_store
from o2o_lightning.data.d4rl import D4RL_TASKS
from o2o_lightning.data.raw import Said
from o2o_lightning.data.spec import EMBEDDED, list_specs, load_raw
from o2o_lightning.envs.make import env_spec
from o2o_lightning.envs.scores import normalized_score, reference_scores
from o2o_lightning.errors import UserError
from o2o_lightning.nn.normalizer import Normalizer

# ---- specs -----------------------------------------------------------------------------------------------------------


def test_the_embedded_dataset_is_what_its_readme_says() -> None:
    raw = load_raw("embedded:hopper-medium")
    assert raw.env_id == "Hopper-v5" and raw.next_observations is None and not raw.infos
    manifest = build_store(raw, env_spec("Hopper-v5")).manifest
    assert (manifest.transitions, manifest.complete_episodes) == (100_000, 240)
    assert (manifest.terminated, manifest.truncated, manifest.td_transitions) == (218, 23, 99_977)
    assert manifest.return_mean == pytest.approx(1522.2, abs=0.05)
    assert manifest.return_std == pytest.approx(722.8, abs=0.05)
    reference = reference_scores("Hopper-v5")
    assert reference and normalized_score(manifest.return_mean, reference) == pytest.approx(47.4, abs=0.05)
    assert {"cut", "cut_source_sha256", "licence", "not_d4rl"} <= set(raw.metadata)


def test_the_embedded_dataset_is_small_enough_to_ship() -> None:
    files = list(EMBEDDED.glob("*.hdf5"))
    assert files and all(file.stat().st_size <= 6_000_000 for file in files)


def test_a_path_is_a_spec(tmp_path: Path) -> None:
    path = write(tmp_path / "a.hdf5")
    assert load_raw(str(path)).source == str(path)
    with pytest.raises(UserError, match="there is no file"):
        load_raw(str(tmp_path / "b.hdf5"))


def test_a_wrong_shape_is_refused_when_loading_unless_asked_not_to(tmp_path: Path) -> None:
    path = write(tmp_path / "a.hdf5", actions=np.zeros((12, 2, 1), np.float32))
    with pytest.raises(UserError, match="two axes"):
        load_raw(str(path))
    assert len(load_raw(str(path), check=False)) == 12


@pytest.mark.parametrize(
    ("spec", "guess"),
    [
        ("d4lr:hopper-medium-v2", "Did you mean `d4rl:hopper-medium-v2`"),
        ("hopper-medium-v2", "Did you mean `d4rl:hopper-medium-v2`"),
        ("hopper-medium", "Did you mean `embedded:hopper-medium`"),
        ("Minari:a/b", "Did you mean `minari:a/b`"),
        ("what is this", "neither a file nor a known form"),
    ],
)
def test_an_unknown_spec_lists_the_four_forms_and_a_guess(spec: str, guess: str) -> None:
    with pytest.raises(UserError) as error:
        load_raw(spec)
    assert guess in str(error.value)
    for form in ("path/to/file.hdf5", "d4rl:NAME", "minari:ID", "embedded:NAME"):
        assert form in str(error.value)


def test_an_unknown_embedded_name_lists_those_there_are() -> None:
    with pytest.raises(UserError, match="It has: `embedded:hopper-medium`"):
        load_raw("embedded:walker")


def test_the_list_has_embedded_and_d4rl_datasets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    specs = {entry.spec: entry for entry in list_specs()}
    assert specs["embedded:hopper-medium"].env_id == "Hopper-v5"
    assert {f"d4rl:{name}" for name in D4RL_TASKS} <= set(specs)


# ---- Minari ----------------------------------------------------------------------------------------------------------


def make_minari(
    monkeypatch: pytest.MonkeyPatch, folder: Path, observation_space: Any, observations: Any, **changes: Any
) -> None:
    minari = pytest.importorskip("minari")
    from minari.data_collector import EpisodeBuffer

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder))
    buffers = [
        EpisodeBuffer(
            id=number,
            observations=observations(number),
            actions=np.full((3, 1), number + 1, np.float32),
            rewards=[0.1, 0.2, 0.3],
            terminations=[False, False, number == 0],
            truncations=[False, False, False],
            infos={},
        )
        for number in range(2)
    ]
    minari.create_dataset_from_buffers(
        "toy/test-v0",
        buffer=buffers,
        env=gym.make("Pendulum-v1", **changes),
        observation_space=observation_space,
        action_space=spaces.Box(-2, 2, (1,), np.float32),
        description="toy",
    )


def test_a_minari_dataset_keeps_each_episodes_own_successors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = lambda number: np.arange(4, dtype=np.float32)[:, None] + 10 * number  # noqa: E731
    make_minari(monkeypatch, tmp_path, spaces.Box(-99, 99, (1,), np.float32), rows)
    raw = load_raw("minari:toy/test-v0")
    assert np.asarray(raw.observations)[:, 0].tolist() == [0, 1, 2, 10, 11, 12]
    assert raw.next_observations is not None
    assert np.asarray(raw.next_observations)[:, 0].tolist() == [1, 2, 3, 11, 12, 13]
    assert raw.rewards.dtype == np.float32 and raw.rewards.tolist() == pytest.approx([0.1, 0.2, 0.3] * 2)
    assert raw.terminated.tolist() == [False, False, True, False, False, False]
    assert raw.truncated.tolist() == [False] * 5 + [True]  # the recording stops unflagged: no bootstrap is lost
    assert raw.env_id == "Pendulum-v1" and len(raw.sha256) == 64
    store = build_store(raw, None)
    assert store.td_rows is None and store.episodes.tolist() == [[0, 3], [3, 6]]


PARTS = {"achieved_goal": 1.0, "desired_goal": 2.0, "observation": 3.0}


@pytest.mark.parametrize("asked, row", [
    ((), [1, 1, 2, 2, 3, 3]),
    (("observation", "desired_goal"), [3, 3, 2, 2]),
])  # fmt: skip
def test_a_dictionarys_parts_are_joined_in_their_spaces_order_or_the_one_asked_for(
    asked: tuple[str, ...], row: list[float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    space = spaces.Dict({key: spaces.Box(-9, 9, (2,), np.float32) for key in PARTS})
    rows = lambda number: {key: np.full((4, 2), value, np.float32) for key, value in PARTS.items()}  # noqa: E731
    make_minari(monkeypatch, tmp_path, space, rows)
    raw = load_raw("minari:toy/test-v0", said=Said(layout=tuple(asked)))
    assert np.asarray(raw.observations)[0].tolist() == row
    assert raw.layout == (asked or tuple(space.spaces))


def test_images_in_a_minari_dataset_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    space = spaces.Box(0, 255, (8, 8, 3), np.uint8)
    make_minari(monkeypatch, tmp_path, space, lambda _: np.zeros((4, 8, 8, 3), np.uint8))
    with pytest.raises(UserError, match="is an image"):
        load_raw("minari:toy/test-v0")


def test_what_the_recorded_environment_had_of_its_own_is_said_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    box = spaces.Box(-99, 99, (3,), np.float32)
    rows = lambda number: np.full((4, 3), number, np.float32)  # noqa: E731
    make_minari(monkeypatch, tmp_path / "as_registered", box, rows, render_mode="rgb_array")
    load_raw("minari:toy/test-v0")
    assert capsys.readouterr().err == ""
    make_minari(monkeypatch, tmp_path / "other", box, rows, g=2.0, max_episode_steps=50)
    load_raw("minari:toy/test-v0", said=Said("Pendulum-v1"))
    assert capsys.readouterr().err == ""
    for _ in range(2):
        load_raw("minari:toy/test-v0")
    assert capsys.readouterr().err.count("recorded in Pendulum-v1 with another g, max_episode_steps than") == 1


def test_a_damaged_minari_dataset_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import h5py

    make_minari(monkeypatch, tmp_path, spaces.Box(-99, 99, (1,), np.float32), lambda _: np.zeros((4, 1), np.float32))
    with h5py.File(tmp_path / "toy/test-v0/data/main_data.hdf5", "r+") as file:
        del file["episode_1/rewards"]
    with pytest.raises(UserError, match=r"its episodes cannot be read .* damaged"):
        load_raw("minari:toy/test-v0")


def test_offline_the_minari_error_names_where_to_put_the_dataset(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    minari = pytest.importorskip("minari")

    def load(dataset_id: str, download: bool = False) -> None:
        raise ConnectionError("no network") if download else FileNotFoundError(dataset_id)

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    monkeypatch.setattr(minari, "load_dataset", load)
    with pytest.raises(UserError) as error:
        load_raw("minari:toy/absent-v0")
    assert "cannot be downloaded (no network)" in str(error.value)
    assert str(tmp_path / "toy/absent-v0") in str(error.value)


def test_without_minari_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "minari", None)
    with pytest.raises(UserError, match=r"pip install 'o2o-lightning\[minari\]'"):
        load_raw("minari:toy/test-v0")


# ---- scores ----------------------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(st.sampled_from(sorted(D4RL_TASKS)), st.floats(-2, 3))
def test_the_score_is_affine_between_random_0_and_expert_100(name: str, mix: float) -> None:
    reference = reference_scores(name)
    assert reference is not None
    low, high = reference
    assert normalized_score(low, reference) == 0 and normalized_score(high, reference) == 100
    assert normalized_score(low + mix * (high - low), reference) == pytest.approx(100 * mix, abs=1e-9)


def test_every_downloadable_d4rl_dataset_has_a_reference() -> None:
    assert all(reference_scores(f"d4rl:{name}") for name in D4RL_TASKS)


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("d4rl:hopper-full-replay-v2#sha256=00", (-20.272305, 3234.3)),
        ("Hopper-v2", (-20.272305, 3234.3)),
        ("Hopper-v5", (-20.272305, 3234.3)),
        ("HalfCheetah-v4", (-280.178953, 12135.0)),
        ("Walker2d-v4", (1.629008, 4592.3)),
        ("Ant-v5", (-325.6, 3879.7)),
        ("AdroitHandRelocate-v1", (-6.425911, 4233.877797728884)),
        ("AdroitHandPen-v1", None),  # 200 steps, D4RL's has 100
        ("AntMaze_Medium_Diverse_GR-v4", None),
        ("FrankaKitchen-v1", None),
        ("antmaze-large-play-v2", (0.0, 1.0)),
        ("maze2d-large-dense-v1", (30.569041, 303.4857382709002)),
        ("PointMaze_UMaze-v3", None),
        ("AntMaze_UMazeDense-v4", None),
        ("Pendulum-v1", None),
        ("", None),
    ],
)
def test_references_are_found_by_dataset_and_by_environment(name: str, reference: tuple[float, float] | None) -> None:
    assert reference_scores(name) == reference


# ---- normaliser ------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 200), st.integers(1, 5), st.integers(0, 2**31 - 1))
@example(2, 2, 6764694)
def test_normalised_observations_have_mean_0_and_std_1(rows: int, size: int, seed: int) -> None:
    observation = torch.from_numpy(np.random.default_rng(seed).normal(3, 5, (rows, size)).astype(np.float32))
    fitted = Normalizer.fit(observation, eps=0.0)
    normal = fitted(observation).double()
    # of rows that lie close together, the digits of a float32 that they share are lost
    lost = 1e-5 + 2.0**-22 * observation.abs().amax(0).double() / observation.double().std(0, unbiased=False)
    assert (normal.mean(0).abs() <= lost).all()
    assert ((normal.std(0, unbiased=False) - 1.0).abs() <= lost).all()


def test_the_constants_are_those_of_numpy_and_a_constant_column_stays_finite() -> None:
    observation = np.random.default_rng(0).normal(size=(1000, 3)).astype(np.float32)
    observation[:, 1] = 7
    fitted = Normalizer.fit(torch.from_numpy(observation))
    np.testing.assert_allclose(fitted.mean.numpy(), observation.mean(0, dtype=np.float64), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(fitted.std.numpy(), observation.std(0, dtype=np.float64), rtol=1e-6, atol=1e-7)
    expected = (observation - observation.mean(0)) / (observation.std(0) + 1e-3)
    np.testing.assert_allclose(fitted(torch.from_numpy(observation)).numpy(), expected, atol=1e-4)
    assert (fitted.numpy(observation)[:, 1] == 0).all()


def test_the_numpy_path_is_the_torch_path() -> None:
    observation = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    fitted = Normalizer.fit(observation)
    np.testing.assert_array_equal(fitted.numpy(observation.numpy()), fitted(observation).numpy())


def test_the_identity_changes_no_bit_and_a_state_restores_the_constants() -> None:
    observation = torch.randn(5, 4)
    assert torch.equal(Normalizer.identity(4)(observation), observation)
    fitted = Normalizer.fit(observation, eps=0.5)
    state = fitted.state()
    assert {type(value) for value in state.values()} == {torch.Tensor, float, type(None)}
    assert torch.equal(Normalizer.from_state(state)(observation), fitted(observation))
