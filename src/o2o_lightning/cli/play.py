"""``o2o play``: watches a checkpoint's policy, or records it."""

import argparse
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from o2o_lightning.cli.show import refuse_existing, say
from o2o_lightning.errors import UserError, at_least
from o2o_lightning.ranges import check_ranges

INSTALL = "Run `pip install 'o2o-lightning[video]'`."


def main(argv: list[str]) -> int:
    """Runs ``o2o play``."""
    parser = argparse.ArgumentParser("o2o play", description=__doc__, allow_abbrev=False)
    parser.add_argument("checkpoint", metavar="CKPT", help="of any phase, e.g. RUN_DIR/online/checkpoints/best.ckpt")
    parser.add_argument("--record", type=Path, metavar="FILE", help=".mp4 or .gif to write, instead of a window")
    parser.add_argument("--episodes", type=int, default=1, help="default: 1")
    parser.add_argument("--policy", default="actor", choices=("actor", "reference", "offline"), help="default: actor")
    parser.add_argument("--env_id", "--data.env_id", dest="env_id", help="environment (default: CKPT's own)")
    parser.add_argument("--seed", type=int, default=1000, help="of the first episode's start (default: 1000)")
    arguments = parser.parse_args(argv)
    at_least("--episodes", arguments.episodes, 1)
    check_ranges("", {"episodes": arguments.episodes, "seed": arguments.seed})
    if arguments.record is not None:
        refuse_existing("--record", arguments.record)
        if not arguments.record.absolute().parent.is_dir():
            raise UserError(
                f"--record {arguments.record}: there is no folder {arguments.record.parent}. Make it first."
            )
    elif sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise UserError("o2o play: there is no display here. Record a film: --record out.gif, or out.mp4.")
    if arguments.record is not None and sys.platform == "linux":
        os.environ.setdefault("MUJOCO_GL", "egl")  # pictures without a display; read when MuJoCo is first imported
    _play(arguments)
    return 0


def _play(arguments: argparse.Namespace) -> None:
    from o2o_lightning.envs.make import make_env
    from o2o_lightning.envs.scores import normalized_score, reference_scores
    from o2o_lightning.policies.load import load_policy
    from o2o_lightning.report.video import film, stride

    loaded = load_policy(arguments.checkpoint, arguments.policy, arguments.env_id)
    if loaded.env_id is None:
        raise UserError(f"checkpoint {arguments.checkpoint}: it names no environment to play in. Pass --env_id ID.")
    mode = "human" if arguments.record is None else "rgb_array"
    with ExitStack() as stack:
        kwargs = {**loaded.source.kwargs_in(loaded.env_id), "render_mode": mode}
        env = make_env(loaded.env_id, loaded.policy.spec.observation_dim, loaded.source.layout, kwargs)
        stack.callback(env.close)
        _follow(env)
        rate = env.metadata.get("render_fps") or 30
        every, add = stride(rate), None
        if arguments.record is not None:
            add = stack.enter_context(film(arguments.record, rate / every))
        reference = reference_scores(loaded.env_id)
        for number in range(arguments.episodes):
            observation, _ = env.reset(seed=arguments.seed + number)
            loaded.player.reset(1)
            total, steps, over = 0.0, 0, False
            while not over:
                if add is not None and steps % every == 0:
                    add(_picture(env, loaded.env_id))
                action = loaded.player.act(observation[None], [0])[0]
                observation, reward, terminated, truncated, _ = env.step(action)
                loaded.player.observe(np.array([reward], np.float32), [0])
                total, steps, over = total + float(reward), steps + 1, terminated or truncated
            score = "" if reference is None else f", score {normalized_score(total, reference):.1f}"
            say(f"episode {number + 1}: return {total:.1f}{score}, {steps} steps")
    if arguments.record is not None:
        say(f"{arguments.record}: {rate / every:.0f} pictures a second")


def _follow(env: Any) -> None:
    """MuJoCo's runners leave the picture, where their model's own camera goes along."""
    renderer = getattr(env.unwrapped, "mujoco_renderer", None)
    if renderer is not None:
        import mujoco

        camera = mujoco.mj_name2id(renderer.model, mujoco.mjtObj.mjOBJ_CAMERA, "track")
        renderer.camera_id = camera if camera >= 0 else renderer.camera_id


def _picture(env: Any, env_id: str) -> Any:
    from gymnasium.error import DependencyNotInstalled

    try:
        picture = env.render()
    except DependencyNotInstalled as error:
        raise UserError(
            f"environment {env_id}: its pictures need what is not installed ({error}). {INSTALL}"
        ) from error
    except Exception as error:  # of the driver: MuJoCo's own kinds
        raise UserError(
            f"environment {env_id}: it can't be drawn here ({type(error).__name__}: {error}). Without a "
            "display it needs EGL or OSMesa: install one, and set MUJOCO_GL=egl or osmesa."
        ) from error
    if not isinstance(picture, np.ndarray) or picture.ndim != 3:
        raise UserError(f"environment {env_id}: it draws no pictures (render_mode rgb_array). Nothing can be recorded.")
    return picture
