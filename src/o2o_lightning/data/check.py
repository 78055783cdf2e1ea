"""Looks a dataset over: form, values, episode boundaries, the environment's bounds, and a replay in the simulator."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from o2o_lightning.data.physics import Check, replay_check
from o2o_lightning.data.raw import RawDataset, validate
from o2o_lightning.envs.make import EnvSpec, env_spec, foreign_id
from o2o_lightning.errors import UserError

SATURATED = 1e-4


def check(raw: RawDataset, env_id: str | None = None, replay_rows: int = 200, seed: int = 0) -> list[Check]:
    """All checks of a dataset, cheap ones first; the rest is left out when the form is wrong.

    Args:
        raw: the dataset.
        env_id: environment to hold it against; by default the one it names.
        replay_rows: how many random rows are replayed in the simulator.
        seed: of the choice of rows.
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
        env = env_spec(env_id, raw.observations.shape[1], raw.layout)
    except UserError as error:
        return [*rows, Check("environment", "fail", str(error))]
    fits = raw.actions.shape[1] == env.action_dim
    rows += [*_environment_checks(raw, env, fits)]
    return [*rows, *replay_check(raw, env_id, replay_rows, seed)] if fits else rows


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

    low, high = float(raw.rewards.min()), float(raw.rewards.max())
    detail = f"[{low:.4g}, {high:.4g}], mean {float(raw.rewards.mean()):.4g}"
    if low == high:
        detail += ": always the same, nothing to learn from"
    yield Check("rewards", "warn" if low == high else "ok", detail)

    terminated, truncated = int(raw.terminated.sum()), int(raw.truncated.sum())
    both = int((raw.terminated & raw.truncated).sum())
    detail = f"{terminated} terminated, {truncated} truncated"
    if both:
        yield Check("flags", "warn", f"{detail}, {both} rows both: they count as truncated")
    elif terminated + truncated == 0:
        yield Check("flags", "warn", f"{detail}: one endless episode, so no returns")
    else:
        yield Check("flags", "ok", detail)

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
        outside = int(((action < low - 1e-3) | (action > high + 1e-3)).any(axis=1).sum())
        edge = ((action <= low + SATURATED * span) | (action >= high - SATURATED * span)).mean()
        bounds = f"[{low.min():g}, {high.max():g}], {100 * edge:.1f} % at a bound"
        detail = f"[{action.min():.4g}, {action.max():.4g}] within {bounds}"
        if outside:
            yield Check("actions", "fail", f"{outside} rows outside the bounds: {detail}")
        else:
            yield Check("actions", "warn" if edge > 0.5 else "ok", detail)
    else:
        yield Check("environment", "fail", f"'actions' has {columns} columns, {env.env_id} takes {env.action_dim}")
        yield Check("actions", "skip", "widths differ")

    end = np.flatnonzero(raw.terminated | raw.truncated)
    longest = int(np.diff(np.concatenate([[-1], end, [len(raw) - 1]])).max())
    if env.horizon is not None and longest > env.horizon:
        yield Check("episode length", "warn", f"longest {longest}, above the environment's horizon {env.horizon}")
    else:
        yield Check("episode length", "ok", f"longest {longest}, horizon {env.horizon}")


def successor_errors(raw: RawDataset, rows: int) -> NDArray[np.int64]:
    """Rows inside episodes, among the first ``rows``, whose next observation is not the next row's observation."""
    assert raw.next_observations is not None
    observation = np.asarray(raw.observations[slice(1, rows)])
    successor = np.asarray(raw.next_observations[slice(0, rows - 1)])
    inside = ~(raw.terminated | raw.truncated)[: rows - 1]
    return np.flatnonzero(inside & (observation != successor).any(axis=1))
