"""Looks a dataset over: form, values, episode boundaries, the environment's bounds, and a replay in the simulator.

The replay asks: is this the physics, and this the reward, that the dataset was recorded with?
"""

from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any, Literal, NamedTuple

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from o2o_lightning.data.raw import RawDataset, validate
from o2o_lightning.data.units import check_units, doubtful, in_native_units
from o2o_lightning.envs.make import NO_KWARGS, EnvSpec, FlatObservation, env_spec, foreign_id
from o2o_lightning.envs.snapshot import simulator_of, simulator_state
from o2o_lightning.errors import UserError

SATURATED = 1e-4
# recorded states are float32, and the solver starts cold where the recording's was warm: contacts differ slightly
MEDIAN_TOLERANCE = 1e-3
MAX_TOLERANCE = 1e-1
PROBES = 9


class Check(NamedTuple):
    """One finding; ``skip`` where it could not be looked at."""

    name: str
    status: Literal["ok", "warn", "fail", "skip"]
    detail: str


def check(
    raw: RawDataset,
    env_id: str | None = None,
    replay_rows: int = 200,
    seed: int = 0,
    kwargs: Mapping[str, Any] = NO_KWARGS,
) -> list[Check]:
    """All checks of a dataset, cheap ones first; the rest is left out when the form is wrong.

    It is held against ``env_id``, by default the one it names, made with ``kwargs``; ``replay_rows`` random rows,
    chosen by ``seed``, are replayed in the simulator.
    """
    try:
        validate(raw)
    except UserError as error:
        return [Check("form", "fail", str(error))]
    rows = [*_own_checks(raw)]
    try:
        env_id = env_id or foreign_id(raw.env_id, "the dataset")
        if env_id is None:
            return [*rows, Check("environment", "skip", "the dataset names none; pass --env_id")]
        env = env_spec(env_id, raw.observations.shape[1], raw.layout, kwargs)
    except UserError as error:
        return [*rows, Check("environment", "fail", str(error))]
    fits = raw.actions.shape[1] == env.action_dim
    rows += [*_environment_checks(raw, env, fits)]
    return [*rows, *replay_check(raw, env, replay_rows, seed)] if fits else rows


def passed(checks: list[Check]) -> bool:
    """Whether none failed; warnings and skips pass."""
    return all(row.status != "fail" for row in checks)


def _own_checks(raw: RawDataset) -> Iterator[Check]:
    observation = np.asarray(raw.observations[slice(None)])
    yield Check("form", "ok", f"{len(raw)} rows, observations {observation.shape[1]}, actions {raw.actions.shape[1]}")
    yield Check("finite", "ok", "no NaN, no infinity")

    low, high = float(observation.min()), float(observation.max())
    yield Check("observation range", "warn" if max(-low, high) > 1e4 else "ok", f"[{low:.4g}, {high:.4g}]")
    constant = np.flatnonzero(np.ptp(observation, axis=0) == 0).tolist()
    detail = f"observation columns {constant} never change" if constant else "none"
    yield Check("constant columns", "warn" if constant else "ok", detail)

    low, high, mean = (float(each()) for each in (raw.rewards.min, raw.rewards.max, raw.rewards.mean))
    remark = ": always the same, nothing to learn from" if low == high else ""
    yield Check("rewards", "warn" if remark else "ok", f"[{low:.4g}, {high:.4g}], mean {mean:.4g}{remark}")

    terminated, truncated = int(raw.terminated.sum()), int(raw.truncated.sum())
    both = int((raw.terminated & raw.truncated).sum())
    remark = f", {both} rows both: they count as terminated" if both else ""
    if terminated + truncated == 0:
        remark = ": one endless episode, so no returns"
    yield Check("flags", "warn" if remark else "ok", f"{terminated} terminated, {truncated} truncated{remark}")

    if raw.next_observations is None:
        yield Check("boundaries", "skip", "no next_observations; successors are the next rows'")
    elif len(wrong := successor_errors(raw, len(raw))):
        inside = int((~(raw.terminated | raw.truncated))[:-1].sum())
        detail = f"{len(wrong)} of {inside} rows inside episodes are not followed by their next observation"
        yield Check("boundaries", "fail", f"{detail}; first: row {wrong[0]}")
    else:
        yield Check("boundaries", "ok", "each row inside an episode is followed by its next observation")


def _environment_checks(raw: RawDataset, env: EnvSpec, fits: bool) -> Iterator[Check]:
    columns, low, high = raw.actions.shape[1], env.action_low, env.action_high
    if fits:
        yield Check("environment", "ok", f"{env.env_id}: widths fit, horizon {env.horizon}")
        action, span = np.asarray(raw.actions[slice(None)]), high - low
        if raw.units == "unit":
            low, high, span = np.float32(-1), np.float32(1), np.float32(2)
        edge = ((action <= low + SATURATED * span) | (action >= high - SATURATED * span)).mean()
        bounds = f"[{low.min():g}, {high.max():g}], {100 * edge:.1f} % at a bound"
        detail = f"[{action.min():.4g}, {action.max():.4g}] within {bounds}"
        yield _actions(raw, env, Check("actions", "warn" if edge > 0.5 else "ok", detail))
    else:
        yield Check("environment", "fail", f"'actions' has {columns} columns, {env.env_id} takes {env.action_dim}")
        yield Check("actions", "skip", "widths differ")

    end = np.flatnonzero(raw.terminated | raw.truncated)
    longest = int(np.diff(np.concatenate([[-1], end, [len(raw) - 1]])).max())
    if env.horizon is not None and longest > env.horizon:
        yield Check("episode length", "warn", f"longest {longest}, above the environment's horizon {env.horizon}")
    else:
        yield Check("episode length", "ok", f"longest {longest}, horizon {env.horizon}")


def _actions(raw: RawDataset, env: EnvSpec, fine: Check) -> Check:
    """The finding on the actions' units, ``fine`` where there is nothing to be said of them."""
    if (doubt := doubtful(raw, env)) is not None:
        return Check("actions", "warn", doubt)
    try:
        check_units(raw, env)
    except UserError as error:
        return Check("actions", "fail", str(error).partition(": ")[2])
    return fine


def successor_errors(raw: RawDataset, rows: int) -> NDArray[np.int64]:
    """Rows inside episodes, among the first ``rows``, whose next observation is not the next row's observation."""
    assert raw.next_observations is not None
    observation = np.asarray(raw.observations[slice(1, rows)])
    successor = np.asarray(raw.next_observations[slice(0, rows - 1)])
    inside = ~(raw.terminated | raw.truncated)[: rows - 1]
    return np.flatnonzero(inside & (observation != successor).any(axis=1))


def replay_check(raw: RawDataset, spec: EnvSpec, count: int, seed: int) -> list[Check]:
    """Sets ``count`` random recorded states, steps with the recorded action, compares next observation and reward.

    Rows of the report: one for the next observation and one for the reward, or one that says why not.
    """
    if "qpos" not in raw.infos or "qvel" not in raw.infos:
        return [Check("replay", "skip", "no infos/qpos and infos/qvel in the dataset")]
    with closing(spec.make()) as env:
        env.reset(seed=seed)
        return _replay(raw, spec, env.env, count, seed)


def _replay(raw: RawDataset, spec: EnvSpec, flat: Any, count: int, seed: int) -> list[Check]:
    assert isinstance(flat, FlatObservation)
    # the inner environment is stepped: wrappers count steps and would end the episode
    inner: Any = flat.unwrapped
    simulator = simulator_of(inner)
    if simulator is None:
        return [Check("replay", "skip", f"{spec.env_id} offers no set_state on a MuJoCo model")]
    states = [np.asarray(raw.infos[key], np.float64) for key in ("qpos", "qvel")]
    sizes, needed = [state.shape[-1] for state in states], [simulator.model.nq, simulator.model.nv]
    if sizes != needed:
        return [Check("replay", "warn", f"cannot replay: qpos, qvel of widths {sizes}, the model has {needed}")]
    goals = None
    if isinstance(inner.observation_space, spaces.Dict):
        if "goal" not in raw.infos or not hasattr(inner, "goal"):
            return [Check("replay", "skip", "cannot replay a goal environment without infos/goal")]
        goals = np.asarray(raw.infos["goal"], np.float64)

    if not _determined(spec):
        return [Check("replay", "skip", f"{spec.env_id} has state beyond qpos and qvel, a target for instance")]
    rows = _usable_rows(raw, count, seed)
    errors = np.empty((len(rows), 2))
    for i, row in enumerate(rows.tolist()):
        _set_state(inner, states[0][row], states[1][row], None if goals is None else goals[row])
        observed, reward, *_ = inner.step(in_native_units(raw, spec, slice(row, row + 1))[0])
        errors[i, 0] = np.abs(flat.observation(observed) - _successor(raw, row)).max()
        errors[i, 1] = abs(float(reward) - float(raw.rewards[row]))
    return [_judged("replay: observation", errors[:, 0]), _judged("replay: reward", errors[:, 1])]


def _set_state(inner: Any, qpos: Any, qvel: Any, goal: Any = None) -> None:
    simulator_of(inner).set_state(qpos, qvel)
    if goal is not None:
        inner.goal = goal


def _determined(spec: EnvSpec) -> bool:
    """Whether what is recorded is all the state there is: put into another episode, it leads to the same successor."""
    with closing(spec.make()) as original, closing(spec.make()) as other:
        original.action_space.seed(0)
        original.reset(seed=1)
        other.reset(seed=2)
        flat: Any = original.env
        errors = []
        for _ in range(PROBES):
            original.step(original.action_space.sample())
            state = {name: value.astype(np.float64) for name, value in simulator_state(original).items()}
            _set_state(other.unwrapped, **state)
            action = original.action(original.action_space.sample())
            steps = [env.unwrapped.step(action) for env in (original, other)]
            observed, expected = (flat.observation(step[0]) for step in steps)
            errors.append(max(np.abs(observed - expected).max(), abs(float(steps[0][1]) - float(steps[1][1]))))
        return bool(np.median(errors) <= MEDIAN_TOLERANCE)


def _usable_rows(raw: RawDataset, count: int, seed: int) -> NDArray[np.int64]:
    rows = np.arange(len(raw))
    if raw.next_observations is None:
        rows = rows[:-1][~(raw.terminated | raw.truncated)[:-1]]
    chosen = np.random.default_rng(seed).choice(rows, min(count, len(rows)), replace=False)
    return np.sort(chosen)


def _successor(raw: RawDataset, row: int) -> NDArray[np.float32]:
    column, at = (raw.observations, row + 1) if raw.next_observations is None else (raw.next_observations, row)
    successor: NDArray[np.float32] = np.asarray(column[slice(at, at + 1)], np.float32)[0]
    return successor


def _judged(name: str, errors: NDArray[np.float64]) -> Check:
    if len(errors) == 0:
        return Check(name, "skip", "no row has a known successor")
    median, largest = float(np.median(errors)), float(errors.max())
    detail = f"error median {median:.2g}, max {largest:.2g} over {len(errors)} rows"
    if median > MEDIAN_TOLERANCE:
        return Check(name, "fail", f"{detail}: other physics or reward than the recording's")
    return Check(name, "warn" if largest > MAX_TOLERANCE else "ok", detail)
