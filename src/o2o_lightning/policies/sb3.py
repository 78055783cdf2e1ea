"""Stable-Baselines3's zip files: SAC, TQC, CrossQ, TD3, DDPG, PPO, TRPO, A2C and ARS, without Stable-Baselines3.

``policy.pth`` is a plain state dict; for ``data`` see :mod:`o2o_lightning.policies.sb3_data`.
"""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from o2o_lightning.limits import read_json
from o2o_lightning.policies.crossq import folded
from o2o_lightning.policies.exploration import SEARCH_NOISE, StateNoise, clipped, expln, settle
from o2o_lightning.policies.sb3_data import Facts
from o2o_lightning.policies.source import (
    CLONE,
    BadPolicy,
    ImportedPolicy,
    Linear,
    Taken,
    read_limited,
    readable,
    reading,
    unzip,
)
from o2o_lightning.policies.tensors import State, linear, load_tensors, numbers, sequence, tensors_of

FORMAT = "Stable-Baselines3 zip"
TAKES = (
    Taken("Stable-Baselines3", "SAC, TQC (zip)", "squashed_gaussian"),
    Taken("Stable-Baselines3", "CrossQ (zip), its batch renormalisation in its layers", "squashed_gaussian"),
    Taken("Stable-Baselines3", "TD3, DDPG (zip)", "deterministic"),
    Taken("Stable-Baselines3", "PPO, TRPO, A2C (zip)", "gaussian"),
    Taken("Stable-Baselines3", "ARS (zip), linear", "gaussian"),
)
MADE_UP = 1000  # observations that gSDE's deviation is taken over where there are no others


def read_sb3(path: Path) -> ImportedPolicy:
    """Takes a Stable-Baselines3 zip apart; members are read in memory and never extracted.

    Raises:
        BadPolicy: a broken zip, another kind of policy (images, discrete actions, recurrent), or sizes that do
            not fit.
    """
    with readable("the zip is broken, cut off or locked", "Copy it again."):
        members = unzip(read_limited(path), ("policy.pth", "data"))
    if "policy.pth" not in members:
        raise BadPolicy("the zip has no 'policy.pth', and every zip of `model.save` has one. Pass such a zip.")
    with reading(f"{path}, policy.pth"):
        state = tensors_of(load_tensors(members["policy.pth"]))
    facts = Facts(_data(members.get("data", b"{}")))
    _refuse_others(state, facts)
    if any(name.endswith(".ra_mean") for name in state):
        state = folded(state, facts.number("batch_norm_eps", 1e-3))
    make = _off_policy if any(key.startswith("actor.") for key in state) else _on_policy
    policy = _linear_search(state, facts) if facts.algorithm() == "ars" else make(state, facts)
    policy.algorithm = facts.algorithm() or policy.algorithm
    if not facts.data:
        policy.notes["data"] = "its member 'data' cannot be read: activation and bounds are the library's defaults"
    _read_activation(policy, facts)
    bounds = facts.bounds(policy.action_dim)
    if policy.family == "gaussian":
        policy.bounds = bounds
        if bounds is None:
            policy.notes["bounds"] = "its action bounds cannot be read: [−1, 1] is assumed"
    elif bounds is not None and not np.allclose(np.abs(bounds), 1.0):  # ±1 may be a wrapper's
        policy.reach = bounds
    policy.layout = _layout(policy, facts)
    _replace_exploration(policy, state, facts)
    return policy


def _data(described: bytes) -> dict[str, Any]:
    with readable("its member 'data' is no JSON", "Copy it again."):
        found = read_json(described)
    return found if isinstance(found, dict) else {}


def _refuse_others(state: State, facts: Facts) -> None:
    names, shape, actions = " ".join(state), facts.shape(), facts.kind("action_space")
    pixels = [shape or (), *(part or () for part in facts.parts().values())]
    observations = facts.kind("observation_space")
    reasons = {
        "it takes images": "features_extractor.cnn" in names
        or ".extractors." in names
        or any(len(p) > 2 for p in pixels),
        "it has a features extractor of its own": bool(re.search(r"(?<!sde_)features_extractor\.", names)),
        "it is recurrent": "lstm" in names,
        f"its observations are {observations}": observations not in ("", "Box", "Dict"),
        "a part of its observations is no Box": None in facts.parts().values(),
    }
    if actions not in ("", "Box") or "q_net." in names or "quantile_net." in names:
        raise BadPolicy(f"its actions are {actions or 'discrete'}, and only continuous ones are fine-tuned here.")
    if reason := next((text for text, holds in reasons.items() if holds), None):
        raise BadPolicy(f"{reason}, and only perceptrons of vectors are imported. {CLONE}")


def _off_policy(state: State, facts: Facts) -> ImportedPolicy:
    parts = ("actor.latent_pi.", "actor.mu.", "actor.log_std", "actor.sde_features_extractor.")
    if any(key.startswith("actor.") and not key.startswith(parts) for key in state):
        raise _unknown(state)
    hidden = sequence(state, "actor.latent_pi")
    if "actor.mu.weight" in state and "actor.log_std.weight" in state:
        mean, log_std = linear(state, "actor.mu"), linear(state, "actor.log_std")
        return ImportedPolicy(FORMAT, "sac", [*hidden, mean], log_std)
    if "actor.log_std" in state:  # gSDE; a mean that is clipped lies in a sequence
        name = "actor.mu.0" if "actor.mu.0.weight" in state else "actor.mu"
        mean = linear(state, name)
        return ImportedPolicy(FORMAT, "sac", [*hidden, mean], _none_yet(mean))
    layers = sequence(state, "actor.mu")
    if layers and not hidden:
        return ImportedPolicy(FORMAT, "td3", layers)
    raise _unknown(state)


def _none_yet(mean: Linear) -> Linear:
    """A layer of log σ until :func:`settle` knows it."""
    return np.zeros_like(mean[0]), np.zeros_like(mean[1])


def _on_policy(state: State, facts: Facts) -> ImportedPolicy:
    parts = ("mlp_extractor.", "action_net.", "value_net.", "log_std", "sde_features_extractor.")
    if not all(key.startswith(parts) for key in state):
        raise _unknown(state)
    hidden = sequence(state, "mlp_extractor.shared_net") + sequence(state, "mlp_extractor.policy_net")
    if "action_net.weight" not in state:
        raise _unknown(state)
    if "log_std" not in state:
        raise BadPolicy("its actions are discrete, and only continuous ones are fine-tuned here.")
    mean, log_std = linear(state, "action_net"), numbers(state, "log_std")
    if log_std.ndim == 2 and facts.flag("squash_output", False):
        return ImportedPolicy(FORMAT, "ppo", [*hidden, mean], _none_yet(mean), activation="tanh")
    one = np.zeros(len(mean[0])) if log_std.ndim == 2 else log_std.ravel()
    return ImportedPolicy(FORMAT, "ppo", [*hidden, mean], one, activation="tanh", mean_kind="linear")


def _linear_search(state: State, facts: Facts) -> ImportedPolicy:
    """Augmented random search: a perceptron, or a linear layer without a tanh, that explores in its weights."""
    if not all(key.startswith("action_net.") for key in state):
        raise _unknown(state)
    layers = [linear(state, "action_net")] if "action_net.weight" in state else sequence(state, "action_net")
    described = facts.data.get("policy_class")
    maker = described.get("__init__") if isinstance(described, dict) else ""
    plain = "ARSLinearPolicy" in str(maker) or (len(layers) == 1 and "net_arch" not in facts.arguments)
    if facts.flag("squash_output", not plain):
        return ImportedPolicy(FORMAT, "ars", layers)
    bounds = facts.bounds(len(layers[-1][0]))
    half = np.ones(len(layers[-1][0])) if bounds is None else (bounds[1] - bounds[0]) / 2
    policy = ImportedPolicy(FORMAT, "ars", layers, np.log(SEARCH_NOISE * half), mean_kind="linear")
    policy.altered = (
        f"its exploration replaced: noise in its weights by a constant σ of {SEARCH_NOISE:g} of half the range"
    )
    return policy


def _layout(policy: ImportedPolicy, facts: Facts) -> tuple[str, ...]:
    """The columns of a dictionary, joined in its space's order; HER's own class put the goal last."""
    if parts := facts.parts():
        width = sum(math.prod(shape or ()) for shape in parts.values())
        if width != policy.observation_dim:
            raise BadPolicy(
                f"its observations {', '.join(parts)} have {width} values, its network takes {policy.observation_dim}. "
                "The file is mixed up; save it again."
            )
        policy.widths = {name: math.prod(shape or ()) for name, shape in parts.items()}
        return tuple(parts)
    return ("observation", "desired_goal") if "goal_selection_strategy" in facts.data else ()


def _replace_exploration(policy: ImportedPolicy, state: State, facts: Facts) -> None:
    """Takes gSDE's noise for a constant, settled on made-up states at first; a clipped mean is two layers."""
    prefix = "actor." if "actor.log_std" in state else ""
    name = f"{prefix}log_std"
    if name not in state or state[name].ndim != 2:
        return
    raw = numbers(state, name)
    std = np.broadcast_to(expln(raw) if facts.flag("use_expln", False) else np.exp(raw), (len(raw), policy.action_dim))
    own = sequence(state, f"{prefix}sde_features_extractor")
    hidden = policy.layers[:-1]
    if not own and len(raw) == policy.observation_dim and (not hidden or len(hidden[-1][1]) != len(raw)):
        features: list[Linear] = []
    else:
        features = own or hidden
    given = len(features[-1][1]) if features else policy.observation_dim
    if given != len(raw):
        raise BadPolicy(f"gSDE's deviation has {len(raw)} rows, its features {given} values. The file is mixed up.")
    policy.noise = StateNoise(features, std)
    if f"{prefix}mu.0.weight" in state and (limit := facts.number("clip_mean", 2.0)) > 0:
        if policy.activation != "relu":
            raise BadPolicy(
                f"gSDE clips its mean at ±{limit:g}, which is written as layers of ReLU, and its activation is "
                f"{policy.activation}. {CLONE}"
            )
        policy.layers = clipped(policy.layers, limit)
        policy.notes["clip"] = f"its mean is clipped at ±{limit:g} before the tanh: two layers of ReLU do that"
    made_up = np.random.default_rng(0).standard_normal((MADE_UP, policy.observation_dim), dtype=np.float32)
    settle(policy, made_up, "random observations")


def _unknown(state: State) -> BadPolicy:
    return BadPolicy(f"its tensors ({', '.join(list(state)[:4])}, …) are of no known architecture. {CLONE}")


def _read_activation(policy: ImportedPolicy, facts: Facts) -> None:
    named = facts.activation()
    if named:
        policy.activation = named
    if named is None:
        policy.notes["activation"] = f"its activation cannot be read: {policy.activation}, the default, is assumed"
