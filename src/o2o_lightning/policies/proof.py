"""What shows that an imported policy is the source's: what the source itself gave, and not our own reading of it."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from o2o_lightning.blocks import blocks
from o2o_lightning.data.raw import RawDataset
from o2o_lightning.envs.make import EnvSpec, unit_actions
from o2o_lightning.nn.actor import FloatArray, StochasticActor
from o2o_lightning.policies.npz import read_npz
from o2o_lightning.policies.parity import apart, by_float64, tolerance
from o2o_lightning.policies.source import BadPolicy, ImportedPolicy, read_limited, readable, reading

FORM = "an NPZ file of `observations` [N, O] and the `actions` [N, A] that the source's own program takes at them"
ROWS = 8192  # observations at once
EDGE, FEWEST = 0.99, 50  # recorded actions nearer to ±1 have lost their digits; of the others, so many are needed
NATS = 0.01  # that 99 of 100 recorded log-probabilities may be apart


class Proof(NamedTuple):
    """Against what, in how many rows, and how far apart at most, in ``what``."""

    against: str
    rows: int
    largest: float
    what: str


def by_reference(policy: ImportedPolicy, file: str, env: EnvSpec | None, units: str | None) -> Proof:
    """Compares with actions that the source gave, in its own units, or in ``[-1, 1]`` where ``units`` says so.

    Raises:
        UserError: unreadable, of other sizes, or the policy's actions are others.
    """
    what = "actions"
    with reading(file, "reference"):
        observations, actions = _reference(file, policy)
    if policy.whole is not None and observations.shape[1] == policy.whole.observation_dim:
        policy, what = policy.whole, "actions, before that,"
    return _compared(policy, file, observations, actions, env, units)._replace(what=what)


def by_program(policy: ImportedPolicy, states: FloatArray, env: EnvSpec | None, units: str | None) -> Proof:
    """Compares with the actions that the file itself, run as a program, takes at ``states`` ``[N, S]``.

    Raises:
        BadPolicy: the policy's actions are others.
    """
    assert policy.program is not None
    with readable("ONNX Runtime fails on it", "Export it again."):
        actions = np.asarray(policy.program(states), np.float32).reshape(len(states), policy.action_dim)
    against = f"ONNX Runtime's of {policy.file}"
    return _compared(policy, against, states, actions, env, None if policy.reach is not None else units)


def _compared(
    policy: ImportedPolicy, file: str, observations: FloatArray, actions: FloatArray, env: EnvSpec | None,
    units: str | None,
) -> Proof:  # fmt: skip
    actor, normalizer = policy.build_actor(), policy.build_normalizer()
    rows = [*blocks(len(actions), ROWS)]
    ours = np.concatenate([actor.act(normalizer.numpy(observations[part])) for part in rows])
    exact = np.concatenate([by_float64(actor, normalizer, observations[part]) for part in rows])
    rounded = tolerance(actor, ours, exact)
    low, high = _bounds(policy, env, units)
    source = np.clip(unit_actions(actions, low, high), -1.0, 1.0)
    found = apart(ours, source, rounded)
    if not found["same"]:
        scaled = units is None and apart(ours, np.clip(actions, -1.0, 1.0), rounded)["same"]
        remedy = (
            "They are the same in [-1, 1]: pass --actions unit."
            if scaled
            else "Pass the --normalizer, --activation, --layout or --env_id that belongs to it."
        )
        raise BadPolicy(
            f"its actions are not those of {file}: up to {found['largest']:.2g} of half the range apart, most in "
            f"dimension {found['dimension']} of row {found['state']}. {remedy}"
        )
    return Proof(file, len(actions), found["largest"], "actions")


def by_recording(policy: ImportedPolicy, raw: RawDataset, env: EnvSpec | None, rows: slice) -> Proof | None:
    """Compares log-probabilities that a dataset recorded with its actions; None where it has none, or another's."""
    logged, actor = raw.infos.get("action_log_probs"), policy.build_actor()
    if logged is None or policy.altered is not None or not isinstance(actor, StochasticActor):
        return None
    low, high = _bounds(policy, env, raw.units)
    unit = unit_actions(np.asarray(raw.actions[rows], np.float32), low, high)
    there = np.asarray(logged[rows], np.float64).reshape(len(unit), -1)[:, 0]
    inner = (np.abs(unit) < EDGE).all(1) & np.isfinite(there)
    if inner.sum() < FEWEST:
        return None
    observation = policy.build_normalizer()(torch.from_numpy(np.asarray(raw.observations[rows], np.float32)))
    with torch.no_grad():
        action = torch.from_numpy(unit)
        ours = actor.density(observation, action, torch.zeros_like(action)).log_prob.numpy()
    if policy.bounds is not None:  # a Gaussian's density is of its own units
        ours = ours - np.log((high - low) / 2).sum()
    largest = float(np.quantile(np.abs(ours - there)[inner], 0.99))
    return Proof(raw.source, int(inner.sum()), largest, "recorded log-probabilities") if largest < NATS else None


def _bounds(policy: ImportedPolicy, env: EnvSpec | None, units: str | None) -> tuple[FloatArray, FloatArray]:
    """Of the source's actions."""
    one = np.ones(policy.action_dim, np.float32)
    own = None if env is None else (env.action_low, env.action_high)
    known: Any = policy.bounds or policy.reach or own
    low, high = (-one, one) if known is None or units == "unit" else known
    return np.asarray(low, np.float32), np.asarray(high, np.float32)


def _reference(file: str, policy: ImportedPolicy) -> tuple[FloatArray, FloatArray]:
    widths = {made.observation_dim for made in (policy, policy.whole) if made is not None}
    found = read_npz(read_limited(Path(file)))
    if missing := [name for name in ("observations", "actions") if name not in found]:
        raise BadPolicy(f"it has no '{missing[0]}'. Pass {FORM}.")
    observations, actions = (found[name].astype(np.float32) for name in ("observations", "actions"))
    rows = actions.shape[:1]
    fits = any(observations.shape == (*rows, width) for width in widths) and actions.shape == (*rows, policy.action_dim)
    if not fits or 0 in rows:
        raise BadPolicy(
            f"its observations are {observations.shape}, its actions {actions.shape}; the policy takes "
            f"{policy.observation_dim} values and gives {policy.action_dim}. Pass {FORM}."
        )
    if not (np.isfinite(observations).all() and np.isfinite(actions).all()):
        raise BadPolicy(f"it holds NaN or infinity. Pass {FORM}.")
    return observations, actions
