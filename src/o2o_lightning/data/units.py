"""What a dataset's actions are counted in, and what that makes of them in ``[-1, 1]``."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from o2o_lightning.blocks import blocks
from o2o_lightning.data.raw import RawDataset
from o2o_lightning.envs.make import EnvSpec, native_actions, unit_actions
from o2o_lightning.errors import UserError
from o2o_lightning.launch import note_once

TOLERANCE = 1e-3
EDGE = 0.95  # of the unit range, that actions scaled to it come to and others end at by chance alone
UNIT = "Pass --data.actions unit if they are scaled to [-1, 1]"
ASK = f"{UNIT}, --data.actions native if they are not."


def in_unit_range(raw: RawDataset, env: EnvSpec | None, rows: slice) -> NDArray[np.float32]:
    """Actions ``[R, A]`` of some rows, as agents take them; as they are without an environment to say the bounds."""
    action = np.asarray(raw.actions[rows], np.float32)
    if env is None:
        return action
    if raw.units != "unit":
        action = unit_actions(action, env.action_low, env.action_high)
    return np.clip(action, -1.0, 1.0)


def in_native_units(raw: RawDataset, env: EnvSpec, rows: slice) -> NDArray[np.float32]:
    """Actions ``[R, A]`` of some rows, as the environment takes them."""
    action = np.asarray(raw.actions[rows], np.float32)
    if raw.units == "unit":
        return native_actions(action, env.action_low, env.action_high)
    return np.clip(action, env.action_low, env.action_high) if raw.units == "clip" else action


def check_units(raw: RawDataset, env: EnvSpec) -> None:
    """Whether the actions can be what they are taken for.

    Raises:
        UserError: they leave its bounds; or nothing tells the environment's own units from ``[-1, 1]``, and they end
            where the latter does.
    """
    low, high = (-1.0, 1.0) if raw.units == "unit" else (env.action_low, env.action_high)
    lowest, highest = extremes(raw)
    if raw.units != "clip" and outside(lowest, highest, low, high):
        raise UserError(
            f"dataset {raw.source}: 'actions' of {sum(_rows_outside(raw, low, high))} rows leave the bounds of "
            f"{'[-1, 1]' if raw.units == 'unit' else f'{env.env_id}, [{np.min(low):g}, {np.max(high):g}]'}; they range "
            f"over [{lowest.min():g}, {highest.max():g}]. {_remedy(raw, lowest, highest)}"
        )
    if (doubt := doubtful(raw, env)) is not None:
        if doubt.endswith(ASK):
            raise UserError(f"dataset {raw.source}: {doubt}")
        note_once(f"dataset {raw.source}: {doubt}")


def doubtful(raw: RawDataset, env: EnvSpec) -> str | None:
    """What is to be said where actions fit both readings and nothing tells; it ends in :data:`ASK` to be told."""
    found = None if raw.units is not None else both_fit(*extremes(raw), env)
    return None if found is None else f"{found[0]} {ASK if found[1] else UNIT + '.'}"


def both_fit(lowest: Any, highest: Any, env: EnvSpec) -> tuple[str, bool] | None:
    """What is to be said where actions between those ``[A]`` may be in ``env``'s units or in ``[-1, 1]``.

    Those that come to the edge of ``[-1, 1]`` and not beyond have been scaled to it, or end there by chance: then it
    must be told, the second value.
    """
    wide = (env.action_low < -1 - TOLERANCE) | (env.action_high > 1 + TOLERANCE)
    if not wide.any() or outside(lowest, highest, -1.0, 1.0):
        return None
    bounds = f"though the bounds of {env.env_id} are [{env.action_low[wide].min():g}, {env.action_high[wide].max():g}]"
    low_edge = (env.action_low < -1 - TOLERANCE) & (lowest <= -EDGE)
    high_edge = (env.action_high > 1 + TOLERANCE) & (highest >= EDGE)
    if (low_edge | high_edge).any():
        return f"no action leaves [-1, 1] {bounds}: normalised actions?", True
    largest = max(-lowest.min(), highest.max())
    return f"no action is beyond ±{largest:.3g}, {bounds}: they are taken to be in its units.", False


def extremes(raw: RawDataset) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The lowest and the highest value ``[A]`` of each action dimension."""
    parts = [np.asarray(raw.actions[rows], np.float32) for rows in blocks(len(raw))]
    return np.min([part.min(0) for part in parts], axis=0), np.max([part.max(0) for part in parts], axis=0)


def outside(lowest: Any, highest: Any, low: Any, high: Any) -> bool:
    """Whether actions between those ``[A]`` leave the bounds ``low`` and ``high``."""
    return bool(((lowest < low - TOLERANCE) | (highest > high + TOLERANCE)).any())


def _rows_outside(raw: RawDataset, low: Any, high: Any) -> Iterator[int]:
    for rows in blocks(len(raw)):
        action = np.asarray(raw.actions[rows], np.float32)
        yield int(((action < low - TOLERANCE) | (action > high + TOLERANCE)).any(axis=1).sum())


def _remedy(raw: RawDataset, lowest: Any, highest: Any) -> str:
    if raw.units != "unit" and not outside(lowest, highest, -1.0, 1.0):
        return f"{UNIT}, or the --data.env_id they were recorded in."
    if raw.units == "unit":
        return "Pass --data.actions native or clip, or correct them."
    return (
        "Pass the --data.env_id they were recorded in, --data.actions clip if it has clipped them itself, or check "
        f"them with `o2o data check {raw.source}`."
    )
