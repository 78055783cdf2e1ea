"""The state of a running episode: taken from an environment, and put into another instance of it, bit for bit."""

import contextlib
import io
from collections.abc import Callable, Iterator
from typing import Any, cast

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray

PROBE_STEPS = 25


class Unsupported(Exception):
    """A value that a snapshot cannot hold."""


def snapshot(env: gym.Env[Any, Any]) -> dict[str, Any]:
    """The state of ``env``, its wrappers and the environments inside it: tensors and primitives only.

    Of every layer it holds the plain attributes (numbers, arrays, containers of them), the random generator and, for
    MuJoCo, the whole simulator state. What else an environment may hide is found by :func:`can_restore`.
    """
    state = {}
    for path, layer in _layers(env):
        attributes = {}
        for name, value in vars(layer).items():
            with contextlib.suppress(Unsupported):
                attributes[name] = pack(value)
        state[path] = {"attributes": attributes}
        if _is_mujoco(layer):
            state[path]["simulator"] = _integration_state(layer.model, layer.data)
    return state


def restore(env: gym.Env[Any, Any], state: dict[str, Any]) -> None:
    """Puts ``state`` into ``env``, an instance of the same environment that has been reset."""
    for path, layer in _layers(env):
        own = state.get(path, {"attributes": {}})
        for name, value in own["attributes"].items():
            vars(layer)[name] = unpack(value)
        if "simulator" in own:
            _restore_integration(layer.model, layer.data, own["simulator"])


def can_restore(make: Callable[[], gym.Env[Any, Any]]) -> bool:
    """Whether a restored copy of ``make()`` goes on exactly as the original, over a step, a reset and its successor.

    An environment with state outside its plain attributes (an external simulator, a physics world) fails.
    """
    try:
        original, copy = make(), make()
    except Exception:
        return False
    try:
        original.action_space.seed(0)
        actions = [original.action_space.sample() for _ in range(2 * PROBE_STEPS)]
        original.reset(seed=11)
        copy.reset(seed=23)
        _advance(original, actions[:PROBE_STEPS])
        # half-way through the copy's own, different episode, so that what is not overwritten shows
        _advance(copy, actions[: PROBE_STEPS // 2])
        restore(copy, _as_from_a_file(snapshot(original)))
        return _rest(original, actions) == _rest(copy, actions)
    except Exception:
        return False
    finally:
        original.close()
        copy.close()


# ---- what a recording keeps of MuJoCo, so that `o2o data check` can set it again -----------------------------------


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


# ---- layers ------------------------------------------------------------------------------------------------------


def _layers(env: gym.Env[Any, Any]) -> Iterator[tuple[str, Any]]:
    """Wrappers, the environment, and environments that these hold as attributes (a maze holds its robot)."""
    seen: set[int] = set()

    def walk(path: str, layer: Any) -> Iterator[tuple[str, Any]]:
        if id(layer) in seen:
            return
        seen.add(id(layer))
        yield path, layer
        for name, value in sorted(vars(layer).items()):
            if isinstance(value, gym.Env):
                yield from walk(f"{path}.{name}", value)

    return walk("", env)


# ---- MuJoCo ------------------------------------------------------------------------------------------------------


def _is_mujoco(layer: Any) -> bool:
    data = vars(layer).get("data")
    return type(data).__name__ == "MjData" and type(data).__module__.startswith("mujoco")


def _integration_state(model: Any, data: Any) -> dict[str, Any]:
    import mujoco

    spec = mujoco.mjtState.mjSTATE_INTEGRATION
    integration = np.empty(mujoco.mj_stateSize(model, spec))
    mujoco.mj_getState(model, data, integration, spec)
    # Rewards read derived quantities (a body's position) before the step that would recompute them, and after a step
    # they lag one substep behind qpos: they must be taken, not recomputed.
    return {
        "integration": pack(integration),
        "derived": {name: pack(data_array) for name, data_array in _fixed(model, data)},
    }


def _restore_integration(model: Any, data: Any, state: dict[str, Any]) -> None:
    import mujoco

    integration = unpack(state["integration"])
    mujoco.mj_resetData(model, data)
    mujoco.mj_setState(model, data, integration, mujoco.mjtState.mjSTATE_INTEGRATION)
    mujoco.mj_forward(model, data)
    # mj_forward warms the solver up anew
    mujoco.mj_setState(model, data, integration, mujoco.mjtState.mjSTATE_INTEGRATION)
    for name, array in _fixed(model, data):
        if name in state["derived"]:
            array[...] = unpack(state["derived"][name])


def _fixed(model: Any, data: Any) -> Iterator[tuple[str, NDArray[Any]]]:
    """Arrays of ``data`` whose size is the model's, not the number of present contacts."""
    import mujoco

    blank = mujoco.MjData(model)
    for name in sorted(dir(data)):
        array = None if name.startswith("_") else getattr(data, name)
        if isinstance(array, np.ndarray) and array.size and array.shape == getattr(blank, name).shape:
            yield name, array


# ---- values ------------------------------------------------------------------------------------------------------


def pack(value: Any) -> Any:
    """Numbers, arrays, generators and containers of them as what a ``weights_only`` load accepts."""
    if value is None or (isinstance(value, (bool, int, float, str)) and type(value) in (bool, int, float, str)):
        return value
    if isinstance(value, np.ndarray):
        return {"array": _tensor(value)}
    if isinstance(value, np.generic):
        return {"scalar": _tensor(np.asarray(value))}
    if isinstance(value, np.random.Generator):
        return {"generator": pack(value.bit_generator.state)}
    if type(value) in (list, tuple):
        return {type(value).__name__: [pack(item) for item in value]}
    if type(value) is dict and all(isinstance(key, (str, int)) for key in value):
        return {"dict": {key: pack(item) for key, item in value.items()}}
    raise Unsupported(type(value).__name__)


def unpack(value: Any) -> Any:
    """The inverse of :func:`pack`."""
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "array":
        return content.numpy().copy()
    if kind == "scalar":
        return content.numpy()[()]
    if kind == "generator":
        return _generator(unpack(content))
    if kind in ("list", "tuple"):
        items = [unpack(item) for item in content]
        return items if kind == "list" else tuple(items)
    return {key: unpack(item) for key, item in content.items()}


def _tensor(array: NDArray[Any]) -> torch.Tensor:
    try:
        return torch.from_numpy(np.array(array, order="C"))
    except TypeError as error:
        raise Unsupported(str(array.dtype)) from error


def _generator(state: dict[str, Any]) -> np.random.Generator:
    kinds = {kind.__name__: kind for kind in (np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937,
                                              np.random.Philox, np.random.SFC64)}  # fmt: skip
    bits = kinds[state["bit_generator"]]()
    bits.state = cast(Any, state)
    return np.random.Generator(bits)


# ---- the probe ---------------------------------------------------------------------------------------------------


def _advance(env: gym.Env[Any, Any], actions: list[Any]) -> list[Any]:
    seen: list[Any] = []
    for action in actions:
        observation, reward, terminated, truncated, _ = env.step(action)
        # the reward's text, so that −0.0 and NaN count as what they are
        seen.append((_flat(observation), repr(float(reward)), bool(terminated), bool(truncated)))
        if terminated or truncated:
            seen.append(_flat(env.reset()[0]))
    return seen


def _rest(env: gym.Env[Any, Any], actions: list[Any]) -> list[Any]:
    """What an environment does after the first half of ``actions``: the second, a reset, the first again."""
    return [*_advance(env, actions[PROBE_STEPS:]), _flat(env.reset()[0]), *_advance(env, actions[:PROBE_STEPS])]


def _flat(observation: Any) -> list[bytes]:
    parts = observation.values() if isinstance(observation, dict) else [observation]
    return [np.asarray(part).tobytes() for part in parts]


def _as_from_a_file(state: dict[str, Any]) -> dict[str, Any]:
    """``state`` as it would come back from a file."""
    return opened(stored(state))


# ---- as bytes, for another process or a file ---------------------------------------------------------------------


def stored(state: dict[str, Any]) -> bytes:
    """Tensors and primitives as bytes: between processes, tensors themselves would be memory that both share."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def opened(content: bytes) -> dict[str, Any]:
    """The inverse of :func:`stored`."""
    return cast(dict[str, Any], torch.load(io.BytesIO(content), weights_only=True))
