"""What `--data.env_process` saves several seeds: wall-clock time of whole online runs, in turn and side by side.

    python benchmarks/environments.py --seeds 4 --rounds 3
    python benchmarks/environments.py --bare Hopper-v5 Ant-v5     # steps of environments alone, in four ways

`slow:5` takes so many milliseconds to answer, and no processor meanwhile, as a plant, a robot or a simulator on another
machine would.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from o2o_lightning.cli.main import main as o2o
from o2o_lightning.envs.make import make_env
from o2o_lightning.envs.remote import RemoteEnv
from o2o_lightning.phases import online  # noqa: F401  (imported before the forks)


class Slow(gym.Env[Any, Any]):
    """Answers after so many ``milliseconds``."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (11,))
    action_space = gym.spaces.Box(-1.0, 1.0, (3,))

    def __init__(self, milliseconds: float = 5.0) -> None:
        self.milliseconds = milliseconds

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(11, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        time.sleep(self.milliseconds / 1e3)
        return self.np_random.normal(size=11).astype(np.float32), 0.0, False, False, {}


if "Slow-v0" not in gym.registry:
    gym.register("Slow-v0", Slow, max_episode_steps=100)


def seconds(argv: list[str], log: Path) -> float:
    """Of the clock on the wall, for a run in a process of its own."""
    start, process = time.perf_counter(), os.fork()
    if process == 0:
        with log.open("w") as out, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            code = o2o(argv)
        os._exit(code)
    if os.waitpid(process, 0)[1]:
        sys.exit(f"{' '.join(argv)}: {log.read_text()}")
    return time.perf_counter() - start


def main() -> int:
    """Prints a row for each environment: what more steps take, less what fewer steps of the same run take."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--evaluate", type=int, default=0, help="environment steps between evaluations of ten episodes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bare", action="store_true")
    parser.add_argument("envs", nargs="*", default=["Hopper-v5", "Ant-v5", "slow:2", "slow:10"])
    arguments = parser.parse_args()
    os.chdir(Path(__file__).parent)  # where another process finds this module
    for env in arguments.envs:
        if arguments.bare:
            _bare(env, arguments.seeds, arguments.rounds)
            continue
        found = [{beside: _more(arguments, env, beside) for beside in (False, True)} for _ in range(arguments.rounds)]
        turn, beside = (statistics.median(one[way] for one in found) * 1e3 for way in (False, True))
        ratios = [one[False] / one[True] for one in found]
        print(f"{env}, {arguments.seeds} seeds: {turn:.2f} ms a step in turn, {beside:.2f} side by side, ratio "
              f" {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})", flush=True)  # fmt: skip
    return 0


def _more(arguments: argparse.Namespace, env: str, beside: bool) -> float:
    """Seconds a step of all seeds."""
    used = []
    for steps in (arguments.steps // 4, arguments.steps):
        with tempfile.TemporaryDirectory() as folder:
            name, _, milliseconds = env.partition(":")
            argv = ["fit", "--phase", "online", "online=td3", "experiment=scratch", "--model.hidden", "[64,64]"]
            argv += ["--data.env_id", "environments:Slow-v0" if milliseconds else name]
            argv += ["--data.env_kwargs", f"{{milliseconds: {milliseconds}}}"] if milliseconds else []
            argv += ["--data.env_steps", str(steps), "--data.warmup_steps", str(arguments.steps // 8)]
            argv += ["--data.eval_every", str(arguments.evaluate)]
            argv += [] if arguments.evaluate else ["--data.eval_episodes", "0"]
            argv += ["--data.env_process", str(beside).lower(), f"seeds={arguments.seeds}"]
            used.append(seconds([*argv, "--run_dir", f"{folder}/run"], Path(folder) / "log"))
    return (used[1] - used[0]) / (arguments.steps - arguments.steps // 4)


def _bare(name: str, count: int, rounds: int) -> None:
    """Prints microseconds on the wall, and of this process's processor, for a step of all environments."""
    make = partial(make_env, name)
    envs, remotes = [make() for _ in range(count)], [RemoteEnv(make, 0, _nothing) for _ in range(count)]
    vector = gym.vector.AsyncVectorEnv([make] * count)
    for env in (*envs, *remotes):
        env.reset(seed=0)
    vector.reset(seed=0)
    generator = np.random.default_rng(0)
    actions = generator.uniform(-1.0, 1.0, (200, count, len(envs[0].low))).astype(np.float32)

    def one(env: Any, action: Any) -> None:
        if any(env.begin(action)()[2:4]):
            env.reset()

    def beside(step: Any) -> None:
        for end in [env.begin(action) for env, action in zip(remotes, step, strict=True)]:
            end()

    with ThreadPoolExecutor(count) as threads:
        ways: dict[str, Callable[[Any], Any]] = {
            "in turn": lambda step: [*map(one, envs, step)],
            "threads": lambda step: [*threads.map(one, envs, step)],
            "processes": beside,
            "AsyncVectorEnv": vector.step,
        }
        found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, step_all in ways.items():
                wall, processor = time.perf_counter(), time.process_time()
                for step in actions:
                    step_all(step)
                spent = time.perf_counter() - wall, time.process_time() - processor
                found[way].append((spent[0] / len(actions) * 1e6, spent[1] / len(actions) * 1e6))
    vector.close()
    for remote in remotes:
        remote.close()
    for way, times in found.items():
        wall, processor = (statistics.median(column) for column in zip(*times, strict=True))
        print(f"{name}, {count} environments, {way}: {wall:.0f} µs, {processor:.0f} of this processor's", flush=True)


def _nothing() -> None:
    """What is done meanwhile."""


if __name__ == "__main__":
    sys.exit(main())
