"""What a recording keeps of a MuJoCo simulator: the state that ``o2o data check`` can set again."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray


def simulator_of(env: Any) -> Any:
    """The MuJoCo environment itself, which a maze keeps inside; None where there is none."""
    inner = env.unwrapped if isinstance(env, gym.Env) else env
    for candidate in (inner, getattr(inner, "point_env", None), getattr(inner, "ant_env", None)):
        if hasattr(candidate, "set_state") and hasattr(getattr(candidate, "model", None), "nq"):
            return candidate
    return None


def simulator_state(env: gym.Env[Any, Any]) -> dict[str, NDArray[np.float32]]:
    """``qpos``, ``qvel`` and a maze's ``goal`` at this moment, as D4RL's ``infos``; empty without a simulator."""
    simulator = simulator_of(env)
    if simulator is None:
        return {}
    state = {"qpos": simulator.data.qpos, "qvel": simulator.data.qvel}
    goal = getattr(env.unwrapped, "goal", None)
    if isinstance(env.unwrapped.observation_space, gym.spaces.Dict) and isinstance(goal, np.ndarray):
        state["goal"] = goal
    return {name: np.array(value, np.float32).ravel() for name, value in state.items()}
