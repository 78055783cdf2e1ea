"""A policy to take away: from Python by `load_policy`, and to look at by `o2o play`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import Run
from PIL import Image

from o2o_lightning import UserError, load_policy

O2O = Callable[..., int]


class Dot(gym.Env[Any, Any]):
    """A point that is pushed along a line, 12 steps an episode, and can be drawn."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 60}  # noqa: RUF012
    observation_space = gym.spaces.Box(-np.inf, np.inf, (3,))
    action_space = gym.spaces.Box(-2.0, 2.0, (1,))

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.place = 0
        return np.zeros(3, np.float32), {}

    def step(self, action: Any) -> Any:
        self.place += 1
        return np.full(3, self.place, np.float32), 1.0, False, self.place == 12, {}

    def render(self) -> Any:
        picture = np.zeros((32, 48, 3), np.uint8)
        picture[:, 4 * self.place : 4 * self.place + 4] = 255
        return picture


@pytest.fixture(autouse=True)
def _dot() -> None:
    gym.register("Dot-v0", Dot)


@pytest.fixture
def checkpoint(chain: dict[str, Run]) -> Path:
    return chain["offline"].checkpoint


def test_a_loaded_policy_is_the_network_between_raw_observations_and_the_environments_units(
    chain: dict[str, Run], checkpoint: Path
) -> None:
    phase = chain["offline"].module
    observations = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    mean, std, eps = phase.normalizer.mean, phase.normalizer.std, phase.normalizer.eps
    with torch.no_grad():
        unit = phase.policy().mode((torch.from_numpy(observations) - mean) / (std + eps)).numpy()
    policy = load_policy(checkpoint)
    np.testing.assert_allclose(policy(observations), 2 * unit, rtol=1e-5)  # Pendulum's torque is within ±2
    np.testing.assert_allclose(policy(observations[1]), policy(observations)[1], rtol=1e-5)
    assert policy(observations).shape == (5, 1) and policy(observations[0]).shape == (1,)


@pytest.mark.parametrize("shape", [(4,), (2, 4), (2, 2, 3), ()])
def test_observations_of_another_width_are_refused(checkpoint: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"it takes observations \[3\] or \[B, 3\], not \["):
        load_policy(checkpoint)(np.zeros(shape))


def test_a_policy_that_the_checkpoint_lacks_is_refused(checkpoint: Path) -> None:
    with pytest.raises(UserError, match="holds no reference policy"):
        load_policy(checkpoint, "reference")


def test_importing_the_package_loads_nothing_that_takes_time() -> None:
    heavy = "torch', 'lightning', 'numpy', 'gymnasium', 'matplotlib', 'hydra"
    code = f"import sys, o2o_lightning; o2o_lightning.__version__; print([m for m in ('{heavy}') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_every_name_of_the_package_is_there() -> None:
    import o2o_lightning

    assert [name for name in o2o_lightning.__all__ if not hasattr(o2o_lightning, name)] == []
    assert {*o2o_lightning.__all__} == {*dir(o2o_lightning)}
    with pytest.raises(AttributeError, match="no attribute 'OflineData'"):
        _ = o2o_lightning.OflineData


# ---- play --------------------------------------------------------------------------------------------------------


def test_a_recorded_film_shows_the_episode(checkpoint: Path, tmp_path: Path, o2o: O2O, capsys: Any) -> None:
    target = tmp_path / "dot.gif"
    assert o2o("play", checkpoint, "--env_id", "Dot-v0", "--record", target) == 0
    assert "episode 1: return 12.0, 12 steps" in capsys.readouterr().out
    film = Image.open(target)
    places = []
    for number in range(film.n_frames):  # type: ignore[attr-defined]
        film.seek(number)
        places.append(int(np.argmax(np.asarray(film.convert("L"))[16] > 128)) // 4)
    assert places == [0, 2, 4, 6, 8, 10]  # 60 pictures a second are 30 of them, and each is shown for its time
    assert film.info["duration"] == pytest.approx(1000 / 30, abs=10)


def test_an_mp4_has_the_episodes_one_after_the_other(checkpoint: Path, tmp_path: Path, o2o: O2O) -> None:
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    target = tmp_path / "dot.mp4"
    assert o2o("play", checkpoint, "--env_id", "Dot-v0", "--episodes", 2, "--record", target) == 0
    frames, seconds = ffmpeg.count_frames_and_secs(str(target))
    assert (frames, seconds) == (12, pytest.approx(12 / 30, abs=0.05))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--record", "a.avi"), "a film is an .mp4 or a .gif"),
        (("--record", "nowhere/a.gif"), "there is no folder nowhere"),
        (("--record", "a.gif", "--episodes", 0), "--episodes 0: it must be at least 1"),
        (("--record", "a.gif", "--env_id", "MountainCarContinuous-v0"), "2 values"),
    ],
)
def test_what_cannot_be_recorded_is_refused_and_leaves_nothing(
    checkpoint: Path, tmp_path: Path, o2o: O2O, capsys: Any, monkeypatch: pytest.MonkeyPatch, options: Any, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert o2o("play", checkpoint, *options) == 2
    assert said in capsys.readouterr().err and not [*tmp_path.iterdir()]


def test_a_film_of_an_environment_that_draws_nothing_is_refused(
    checkpoint: Path, tmp_path: Path, o2o: O2O, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Dot, "render", lambda self: None)
    assert o2o("play", checkpoint, "--env_id", "Dot-v0", "--record", tmp_path / "a.gif") == 2
    assert "it draws no pictures" in capsys.readouterr().err and not [*tmp_path.iterdir()]


def test_without_a_display_a_window_is_refused(
    checkpoint: Path, o2o: O2O, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert o2o("play", checkpoint) == 2
    assert "Record a film: --record out.gif" in capsys.readouterr().err
