"""Small datasets for the data tests: made in memory, or written as D4RL-style HDF5."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
from numpy.typing import NDArray

from o2o_lightning.data.raw import RawDataset
from o2o_lightning.envs.make import EnvSpec


def env_of(low: float = -1.0, high: float = 1.0, observations: int = 3, actions: int = 2, horizon: int | None = None):
    bounds = np.full(actions, low, np.float32), np.full(actions, high, np.float32)
    return EnvSpec("Toy-v0", observations, actions, *bounds, horizon)


def arrays(rows: int = 12, terminals: tuple[int, ...] = (3,), timeouts: tuple[int, ...] = (8,)) -> dict[str, Any]:
    """D4RL arrays whose observation names its row, so that a wrong neighbour shows."""
    observation = np.arange(rows, dtype=np.float32)[:, None] + np.array([0.0, 100.0, 200.0], np.float32)
    flags = np.zeros((2, rows), np.bool_)
    flags[0, list(terminals)] = True
    flags[1, list(timeouts)] = True
    action = np.random.default_rng(0).uniform(-1, 1, (rows, 2)).astype(np.float32)
    reward = np.arange(rows, dtype=np.float32) / 10
    return {
        "observations": observation,
        "actions": action,
        "rewards": reward,
        "terminals": flags[0],
        "timeouts": flags[1],
    }


def raw_of(
    terminated: NDArray[np.bool_],
    truncated: NDArray[np.bool_],
    rewards: NDArray[np.float32] | None = None,
    next_observations: bool = False,
) -> RawDataset:
    made = arrays(len(terminated), (), ())
    return RawDataset(
        observations=made["observations"],
        actions=made["actions"],
        rewards=made["rewards"] if rewards is None else rewards,
        terminated=terminated,
        truncated=truncated,
        next_observations=made["observations"] + 1 if next_observations else None,
        infos={},
        metadata={},
        source="toy",
        sha256="0" * 64,
    )


def write(path: Path, **changes: Any) -> Path:
    """Writes :func:`arrays` with ``changes``; a value of None leaves the key out."""
    with h5py.File(path, "w") as file:
        for key, value in (arrays() | changes).items():
            if value is not None:
                file[key] = value
    return path


def record_pendulum(path: Path, episodes: int, steps: int) -> Path:
    """Random actions on the real Pendulum-v1, its episodes cut by a time limit, as a D4RL-style file."""
    env = gym.make("Pendulum-v1", max_episode_steps=steps)
    env.action_space.seed(0)
    rows: dict[str, list[Any]] = {key: [] for key in ("observations", "actions", "rewards", "terminals", "timeouts")}
    for episode in range(episodes):
        observation, _ = env.reset(seed=episode)
        truncated = False
        while not truncated:
            action = env.action_space.sample()
            successor, reward, terminated, truncated, _ = env.step(action)
            for key, value in zip(rows, (observation, action, reward, terminated, truncated), strict=True):
                rows[key].append(value)
            observation = successor
    env.close()
    with h5py.File(path, "w") as file:
        for key, values in rows.items():
            file[key] = np.array(values, np.bool_ if key in ("terminals", "timeouts") else np.float32)
        file["metadata/env_id"] = "Pendulum-v1"
    return path
