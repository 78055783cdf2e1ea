"""A film of a policy's episodes, as mp4 or gif."""

import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from o2o_lightning.envs.make import make_env
from o2o_lightning.envs.scores import normalized_score, reference_scores
from o2o_lightning.errors import UserError

if TYPE_CHECKING:
    from o2o_lightning.policies.load import LoadedPolicy

Frame = NDArray[np.uint8]
MOST = 30  # frames a second
INSTALL = "Run `pip install 'o2o-lightning[video]'`."


class Episode(NamedTuple):
    """What an episode came to; ``score`` is None where no reference is known."""

    total: float
    score: float | None
    steps: int

    def __str__(self) -> str:
        score = "" if self.score is None else f", score {self.score:.1f}"
        return f"return {self.total:.1f}{score}, {self.steps} steps"


def without_display() -> None:
    """Has MuJoCo draw without one, unless it is said how; it reads that when it is first imported."""
    if sys.platform == "linux":
        os.environ.setdefault("MUJOCO_GL", "egl")


def played(
    loaded: "LoadedPolicy", env_id: str, seeds: range, record: Path | None, smaller: int = 1
) -> Iterator[Episode]:
    """Plays an episode of each seed, in a window or into the film ``record``, of pictures ``smaller`` times smaller.

    Raises:
        UserError: the environment can't be made or drawn, or no film of that name can.
    """
    with closing(_drawing(loaded, env_id, "human" if record is None else "rgb_array")) as env:
        _follow(env)
        if record is None:
            yield from (_episode(loaded, env, env_id, seed, lambda step: None) for seed in seeds)
            return
        every = stride(rate := _rate(env))
        with film(record, rate / every) as add:

            def show(step: int) -> None:
                if step % every == 0:
                    add(_smaller(_picture(env, env_id), smaller))

            yield from (_episode(loaded, env, env_id, seed, show) for seed in seeds)


def _drawing(loaded: "LoadedPolicy", env_id: str, mode: str) -> Any:
    """The environment, which could be made without pictures before."""
    kwargs = {**loaded.source.kwargs_in(env_id), "render_mode": mode}
    try:
        return make_env(env_id, loaded.policy.spec.observation_dim, loaded.source.layout, kwargs)
    except UserError as error:
        raise _undrawn(env_id, error.__cause__ or error) from error


def _undrawn(env_id: str, error: BaseException) -> UserError:
    return UserError(
        f"environment {env_id}: it can't be drawn here ({type(error).__name__}: {error}). Without a display it needs "
        "EGL or OSMesa: install one, and set MUJOCO_GL=egl or osmesa."
    )


def _episode(loaded: "LoadedPolicy", env: Any, env_id: str, seed: int, show: Callable[[int], None]) -> Episode:
    observation, _ = env.reset(seed=seed)
    loaded.player.reset(1)
    total, steps, over = 0.0, 0, False
    while not over:
        show(steps)
        action = loaded.player.act(observation[None], [0])[0]
        observation, reward, terminated, truncated, _ = env.step(action)
        loaded.player.observe(np.array([reward], np.float32), [0])
        total, steps, over = total + float(reward), steps + 1, terminated or truncated
    reference = reference_scores(env_id)
    return Episode(total, None if reference is None else normalized_score(total, reference), steps)


def _rate(env: Any) -> float:
    return float(env.metadata.get("render_fps") or 30)


def _smaller(frame: Frame, times: int) -> Frame:
    from PIL import Image

    return frame if times == 1 else np.asarray(Image.fromarray(frame).reduce(times))


def _follow(env: Any) -> None:
    """MuJoCo's runners leave the picture, where their model's own camera goes along."""
    renderer = getattr(env.unwrapped, "mujoco_renderer", None)
    if renderer is not None:
        import mujoco

        camera = mujoco.mj_name2id(renderer.model, mujoco.mjtObj.mjOBJ_CAMERA, "track")
        renderer.camera_id = camera if camera >= 0 else renderer.camera_id


def _picture(env: Any, env_id: str) -> Frame:
    from gymnasium.error import DependencyNotInstalled

    try:
        picture = env.render()
    except DependencyNotInstalled as error:
        raise UserError(
            f"environment {env_id}: its pictures need what is not installed ({error}). {INSTALL}"
        ) from error
    except Exception as error:  # of the driver: MuJoCo's own kinds
        raise _undrawn(env_id, error) from error
    if not isinstance(picture, np.ndarray) or picture.ndim != 3:
        raise UserError(f"environment {env_id}: it draws no pictures (render_mode rgb_array). Nothing can be recorded.")
    return picture


def stride(rate: float) -> int:
    """Every how many frames of an environment are kept, so that no more than 30 are a second."""
    return max(math.ceil(rate / MOST), 1)


@contextmanager
def film(path: Path, rate: float) -> Iterator[Callable[[Frame], None]]:
    """Takes frames ``[H, W, 3]``, ``rate`` a second; the file is there when all have come.

    Raises:
        UserError: neither mp4 nor gif, or what writes mp4 is not installed.
    """
    if path.suffix not in (".mp4", ".gif"):
        raise UserError(f"--record {path}: a film is an .mp4 or a .gif. Pass such a name.")
    writer: Any = _mp4(path, rate) if path.suffix == ".mp4" else _gif(path, rate)
    next(writer)
    try:
        yield writer.send
    except BaseException:
        writer.close()
        path.unlink(missing_ok=True)
        raise
    writer.close()


def _gif(path: Path, rate: float) -> Iterator[None]:
    from PIL import Image

    images: list[Any] = []
    try:
        while True:
            images.append(Image.fromarray((yield)).quantize(128))  # type: ignore[arg-type]
    except GeneratorExit:
        if images:
            images[0].save(path, save_all=True, append_images=images[1:], duration=round(1000 / rate), loop=0)


def _mp4(path: Path, rate: float) -> Iterator[None]:
    try:
        from imageio_ffmpeg import write_frames
    except ModuleNotFoundError as error:
        raise UserError(
            f"--record {path}: mp4 needs imageio-ffmpeg. Run `pip install 'o2o-lightning[video]'`, or record a .gif."
        ) from error
    first: Any = yield
    writer = write_frames(str(path), (first.shape[1], first.shape[0]), fps=rate, macro_block_size=2)
    writer.send(None)
    try:
        frame = first
        while True:
            writer.send(np.ascontiguousarray(frame))
            frame = yield
    finally:
        writer.close()
