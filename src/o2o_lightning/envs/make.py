"""Gymnasium environments as the agents see them: flat float32 observations, actions in ``[-1, 1]``."""

import contextlib
import importlib
import io
import json
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from types import MappingProxyType
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from o2o_lightning.envs.checked import flagged, observed, rewarded, staying
from o2o_lightning.envs.layout import choose_layout, join, leaves
from o2o_lightning.envs.scores import ANTMAZES
from o2o_lightning.envs.snapshot import can_restore, restore, simulator_state, snapshot
from o2o_lightning.errors import Failure, UserError
from o2o_lightning.launch import note_once, search_here

FloatArray = NDArray[np.float32]
FlatEnv = gym.Env[FloatArray, FloatArray]

Registered = gym.envs.registration.EnvSpec
EPISODE_STEPS = 1000  # where an environment is registered without a limit
NO_KWARGS: Mapping[str, Any] = MappingProxyType({})
ROBOTICS = "Install it with `pip install 'o2o-lightning[robotics]'`."
for _name in ANTMAZES:  # D4RL's own tasks; Gymnasium-Robotics' AntMaze_* are others
    _maze = _name.split("-")[0]
    _steps = 700 if _maze == "umaze" else 1000
    gym.register(
        f"antmaze-{_name}-v2", "o2o_lightning.envs.antmaze:AntMaze", max_episode_steps=_steps, kwargs={"maze": _maze}
    )
_MUJOCO_PY = re.compile(r"^gymnasium_robotics\.envs\.mujoco\.|MujocoPy")  # entry points of the former bindings
CHECK = "Check --data.env_kwargs and the versions of its packages; O2O_TRACEBACK=1 shows where."


@dataclass(frozen=True)
class EnvSpec:
    """Sizes and bounds of an environment, after flattening and before action rescaling, and how it is made.

    ``action_low`` and ``action_high`` are the simulator's own bounds ``[A]``; ``kwargs`` what ``gymnasium.make`` got.
    """

    env_id: str
    observation_dim: int
    action_dim: int
    action_low: FloatArray
    action_high: FloatArray
    horizon: int | None
    layout: tuple[str, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def make(self) -> "UnitAction":
        """One of these environments."""
        return make_env(self.env_id, self.observation_dim, self.layout, self.kwargs)


class FlatObservation(gym.ObservationWrapper[FloatArray, FloatArray, Any]):
    """Joins the named parts of a dictionary observation (or flattens a Box) into float32 ``[S]``."""

    def __init__(self, env: gym.Env[Any, FloatArray], layout: tuple[str, ...]) -> None:
        super().__init__(env)
        self.layout = layout
        found = [*leaves(env.observation_space, layout)]
        self.paths = [path for path, _ in found]
        size = sum(int(np.prod(part.shape)) for _, part in found)
        self.observation_space = spaces.Box(-np.inf, np.inf, (size,), np.float32)

    def observation(self, observation: Any) -> FloatArray:
        return join(observation, self.paths)


class UnitAction(gym.ActionWrapper[Any, FloatArray, FloatArray]):
    """Maps actions of ``[-1, 1]^A`` linearly to the simulator's bounds, clipping what lies outside.

    What it returns has been checked: finite observations as wide as the space, a reward that is a float, flags that
    are bools.
    """

    def __init__(self, env: gym.Env[Any, FloatArray], env_id: str) -> None:
        super().__init__(env)
        self.env_id, self.steps = env_id, 0
        assert env.observation_space.shape is not None
        self.width = env.observation_space.shape[0]
        box = env.action_space
        assert isinstance(box, spaces.Box)
        self.low, self.high = box.low.ravel().astype(np.float32), box.high.ravel().astype(np.float32)
        self._shape, self._dtype = box.shape, box.dtype
        self.action_space = spaces.Box(-1.0, 1.0, self.low.shape, np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        with staying():
            observation, info = super().reset(seed=seed, options=options)
        self.steps = 0
        return observed(observation, self.width, f"environment {self.env_id}: after a reset"), info

    def step(self, action: FloatArray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        where = f"environment {self.env_id}: step {self.steps + 1} of an episode"
        if not np.isfinite(action).all():
            raise Failure(f"{where}: the policy's action is not finite.")
        with staying():
            observation, reward, terminated, truncated, info = super().step(action)
        self.steps += 1
        flags = flagged(terminated, "'terminated'", where), flagged(truncated, "'truncated'", where)
        return observed(observation, self.width, where), rewarded(reward, where), *flags, info

    @property
    def label(self) -> str:
        """What messages call it."""
        return self.spec.id if self.spec else str(self)

    def begin(self, action: FloatArray) -> Callable[[], Any]:
        """What makes the step: here it is not begun before its end is waited for."""
        return partial(self.step, action)

    def snapshot(self) -> dict[str, Any]:
        """As :func:`o2o_lightning.envs.snapshot.snapshot`."""
        return snapshot(self)

    def restore(self, state: dict[str, Any]) -> None:
        """As :func:`o2o_lightning.envs.snapshot.restore`."""
        restore(self, state)

    def can_restore(self, make: "Callable[[], UnitAction]") -> bool:
        """As :func:`o2o_lightning.envs.snapshot.can_restore`."""
        return can_restore(make)

    def simulator_state(self) -> dict[str, FloatArray]:
        """As :func:`o2o_lightning.envs.snapshot.simulator_state`."""
        return simulator_state(self)

    def action(self, action: FloatArray) -> FloatArray:
        native = native_actions(action, self.low, self.high)
        return native.reshape(self._shape).astype(self._dtype, copy=False)


def native_actions(actions: FloatArray, low: FloatArray, high: FloatArray) -> FloatArray:
    """Maps actions ``[..., A]`` of ``[-1, 1]`` to the simulator's bounds, exactly as they are executed."""
    return np.asarray(low + (np.clip(actions, -1.0, 1.0) + 1.0) * ((high - low) / 2), np.float32)


def unit_actions(actions: FloatArray, low: FloatArray, high: FloatArray) -> FloatArray:
    """Maps native actions ``[N, A]`` to ``[-1, 1]``; the inverse of what :class:`UnitAction` applies."""
    if np.all(low == -1.0) and np.all(high == 1.0):
        return actions
    return ((actions - low) / (high - low) * 2 - 1).astype(np.float32)


def make_env(
    env_id: str, observation_dim: int | None = None, layout: Sequence[str] = (), kwargs: Mapping[str, Any] = NO_KWARGS
) -> UnitAction:
    """Makes ``env_id`` with flat float32 observations ``[S]`` and actions in ``[-1, 1]^A``.

    Args:
        env_id: a registered Gymnasium id; Gymnasium-Robotics ids are registered on demand.
        observation_dim: width that the dataset or checkpoint has.
        layout: parts of a dictionary observation in the order to join them; see :func:`choose_layout`.
        kwargs: for ``gymnasium.make``.

    Raises:
        UserError: unknown id, missing simulator, discrete, unbounded or fixed actions, or observations that are images,
            of another width, or of an order that nothing tells.
    """
    env = _make(env_id, kwargs)
    box = env.action_space
    if not isinstance(box, spaces.Box):
        raise UserError(
            f"environment {env_id}: its actions are {type(box).__name__}, and SAC, TD3 and PPO here need a "
            "continuous Box. Choose an environment with continuous actions."
        )
    if not (np.isfinite(box.low).all() and np.isfinite(box.high).all()):
        raise UserError(
            f"environment {env_id}: its action bounds are infinite ({box}). Register an id whose entry point wraps it: "
            "gymnasium.wrappers.TransformAction(env, lambda action: action, Box(low, high)) with finite low and high."
        )
    low, high = box.low.ravel(), box.high.ravel()
    if len(fixed := np.flatnonzero(low >= high)):
        raise UserError(
            f"environment {env_id}: action dimension {fixed[0]} has the bounds {low[fixed[0]]:g} and "
            f"{high[fixed[0]]:g}, so there is nothing to choose. Wrap it so that it takes the others alone."
        )
    chosen = choose_layout(f"environment {env_id}", env.observation_space, observation_dim, layout)
    return UnitAction(FlatObservation(_limited(env, env_id), chosen), env_id)


def plain(kwargs: Mapping[str, Any]) -> str:
    """``--data.env_kwargs`` as text; refused unless it is values that a checkpoint and a configuration can hold."""
    try:
        return json.dumps(dict(kwargs), sort_keys=True)
    except (TypeError, ValueError) as error:
        raise UserError(f"--data.env_kwargs {kwargs}: {error}. Pass texts and numbers by name.") from error


def foreign_id(env_id: str | None, where: str) -> str | None:
    """An environment id that a file names: it may choose among registered ones, not have a module imported."""
    if env_id is not None and not isinstance(env_id, str):
        raise UserError(f"{where}: its env_id is {env_id!r}, no name. Pass --data.env_id.")
    if env_id is not None and ":" in env_id:
        raise UserError(
            f"{where}: its environment '{env_id}' lies in a Python module, which would be run. If you trust it, pass "
            f"--data.env_id {env_id}."
        )
    return env_id


def env_spec(
    env_id: str, observation_dim: int | None = None, layout: Sequence[str] = (), kwargs: Mapping[str, Any] = NO_KWARGS
) -> EnvSpec:
    """Sizes, native action bounds and horizon of ``env_id``; raises as :func:`make_env` does."""
    with contextlib.closing(make_env(env_id, observation_dim, layout, kwargs)) as env:
        assert isinstance(env.env, FlatObservation) and env.observation_space.shape
        width, horizon = env.observation_space.shape[0], env.spec.max_episode_steps if env.spec else None
        return EnvSpec(env_id, width, len(env.low), env.low, env.high, horizon, env.env.layout, dict(kwargs))


def registered(env_id: str) -> Registered | None:
    """What is registered under ``env_id``, without making it; a module that it names is imported."""
    if env_id not in gym.registry and ":" not in env_id:
        with contextlib.suppress(ImportError), warnings.catch_warnings():
            with contextlib.redirect_stderr(io.StringIO()):  # it prints news about itself
                import gymnasium_robotics
            warnings.simplefilter("ignore")
            gym.register_envs(gymnasium_robotics)
    module, _, name = env_id.rpartition(":")
    if module:
        search_here()
        with contextlib.suppress(Exception):  # making it will say what is wrong
            importlib.import_module(module)
    return gym.registry.get(name)


def _make(env_id: str, kwargs: Mapping[str, Any]) -> gym.Env[Any, Any]:
    found = registered(env_id)
    if found and "AntMaze_" in found.id and str(found.entry_point).startswith("gymnasium_robotics"):
        # an episode ends at the goal, as it does in D4RL's own mazes; the default here stays and collects
        kwargs = {"continuing_task": found.kwargs.get("continuing_task", False), **kwargs}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(out of date|deprecated|precision lowered).*")
        try:
            with staying(), _unsaid_deprecations():
                return gym.make(env_id, disable_env_checker=True, **kwargs)
        except gym.error.DependencyNotInstalled as error:
            robotics = found is not None and str(found.entry_point).startswith("gymnasium_robotics")
            remedy = _newer(found) or (ROBOTICS if robotics else "")  # Gymnasium's own say what to install
            raise UserError(f"environment {env_id}: its simulator is missing ({error}). {remedy}".rstrip()) from error
        except (gym.error.Error, ModuleNotFoundError) as error:
            raise UserError(
                f"environment {env_id}: Gymnasium cannot make it ({error}). Check --data.env_id; ids of other "
                "packages take the form `package.module:Env-v0`, and Gymnasium-Robotics needs the extra [robotics]."
            ) from error
        except Exception as error:  # whatever the environment's own constructor trips over
            said = f"{type(error).__name__}: {error}".rstrip(".: ")
            remedy = _clash(found) or _newer(found) or CHECK
            raise UserError(f"environment {env_id}: making it raised {said}. {remedy}") from error


@contextlib.contextmanager
def _unsaid_deprecations() -> Iterator[None]:
    """MuJoCo keeps to itself what is deprecated in a model that its user did not write.

    It would say so for each environment that is made, and leave a file MUJOCO_LOG.TXT where the user works.
    """
    try:
        import mujoco
    except ImportError:
        yield
        return
    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda said: "deprecated" in said or print(f"MuJoCo: {said}", file=sys.stderr))
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)


def _newer(found: Registered | None) -> str | None:
    """Where an environment is one of the former mujoco-py: those of its name that are not."""
    if found is None or found.version is None or not _MUJOCO_PY.search(f"{found.entry_point}"):
        return None
    others = [spec for spec in gym.registry.values() if spec.name == found.name and (spec.version or 0) > found.version]
    newer = [spec.id for spec in others if not _MUJOCO_PY.search(f"{spec.entry_point}")]
    return f"It is one of mujoco-py, which nobody keeps any more. Use {' or '.join(newer)}." if newer else None


def _clash(found: Registered | None) -> str | None:
    """Where the simulator is newer than what the environment's package was written for."""
    simulator = version("mujoco")
    if not f"{found and found.entry_point}".startswith("gymnasium_robotics") or _release(simulator) < (3, 4):
        return None
    return (
        f"mujoco {simulator} is newer than gymnasium-robotics {version('gymnasium-robotics')} knows. "
        "Install one that it knows: `pip install 'mujoco<3.4'`."
    )


def _release(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)[:2]))


def _limited(env: gym.Env[Any, Any], env_id: str) -> gym.Env[Any, Any]:
    """``env`` with a time limit, which evaluations would not end without."""
    if env.spec is not None and env.spec.max_episode_steps is not None:
        return env
    note_once(
        f"environment {env_id}: it is registered without a time limit; its episodes end after {EPISODE_STEPS} steps "
        "here. Register it with max_episode_steps for another limit."
    )
    return gym.wrappers.TimeLimit(env, EPISODE_STEPS)
