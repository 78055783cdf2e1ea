"""Stable-Baselines3's zip files: SAC, TQC, TD3, DDPG, PPO, TRPO and A2C, without Stable-Baselines3.

``policy.pth`` is a plain state dict. The member ``data`` is JSON whose pickled values are left alone; of its plain
strings, activation and action bounds are read.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np

from o2o_lightning.limits import read_json
from o2o_lightning.policies.source import (
    Array,
    BadPolicy,
    ImportedPolicy,
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
    Taken("Stable-Baselines3", "TD3, DDPG (zip)", "deterministic"),
    Taken("Stable-Baselines3", "PPO, TRPO, A2C (zip)", "gaussian"),
)
ACTIVATIONS = {"leakyrelu": "leaky_relu"}  # the others have the same names as ours


def read_sb3(path: Path) -> ImportedPolicy:
    """Takes a Stable-Baselines3 zip apart; members are read in memory and never extracted.

    Raises:
        BadPolicy: a broken zip, another kind of policy (images, discrete actions, gSDE, recurrent), or sizes that do
            not fit.
    """
    with readable("the zip is broken, cut off or locked", "Copy it again."):
        members = unzip(read_limited(path), ("policy.pth", "data"))
    if "policy.pth" not in members:
        raise BadPolicy("the zip has no 'policy.pth', and every zip of `model.save` has one. Pass such a zip.")
    with reading(f"{path}, policy.pth"):
        state = tensors_of(load_tensors(members["policy.pth"]))
    data = _data(members.get("data", b"{}"))
    _refuse_others(state, data)
    policy = _off_policy(state) if any(key.startswith("actor.") for key in state) else _on_policy(state)
    policy.algorithm = _algorithm(data) or policy.algorithm
    if not data:
        policy.notes.append("its member 'data' cannot be read: activation and action bounds are the library's defaults")
    _read_activation(policy, data)
    if policy.family == "gaussian":
        _read_bounds(policy, data)
    return policy


def _data(described: bytes) -> dict[str, Any]:
    with readable("its member 'data' is no JSON", "Copy it again."):
        found = read_json(described)
    return found if isinstance(found, dict) else {}


def _refuse_others(state: State, data: dict[str, Any]) -> None:
    names = " ".join(state)
    reasons = {
        "it takes images or dictionaries": bool(re.search(r"features_extractor\.(cnn|extractors)", names)),
        "it has a features extractor of its own": "features_extractor." in names,
        "it is recurrent": "lstm" in names,
        "it explores by gSDE": data.get("use_sde") is True,
    }
    if reason := next((text for text, holds in reasons.items() if holds), None):
        raise BadPolicy(
            f"{reason}, and only perceptrons of vectors are imported. Wrap it in a Python function of "
            "observations and clone that: `o2o policy clone module:function --family squashed_gaussian`."
        )


def _off_policy(state: State) -> ImportedPolicy:
    parts = ("actor.latent_pi.", "actor.mu.", "actor.log_std.")
    if any(key.startswith("actor.") and not key.startswith(parts) for key in state):
        raise _unknown(state)
    hidden = sequence(state, "actor.latent_pi")
    if "actor.mu.weight" in state and "actor.log_std.weight" in state:
        mean, log_std = linear(state, "actor.mu"), linear(state, "actor.log_std")
        return ImportedPolicy(FORMAT, "sac", [*hidden, mean], log_std)
    layers = sequence(state, "actor.mu")
    if layers and not hidden:
        return ImportedPolicy(FORMAT, "td3", layers)
    raise _unknown(state)


def _on_policy(state: State) -> ImportedPolicy:
    if not all(key.startswith(("mlp_extractor.", "action_net.", "value_net.", "log_std")) for key in state):
        raise _unknown(state)
    hidden = sequence(state, "mlp_extractor.shared_net") + sequence(state, "mlp_extractor.policy_net")
    if "action_net.weight" not in state:
        raise _unknown(state)
    if "log_std" not in state:
        raise BadPolicy("its actions are discrete, and only continuous ones are fine-tuned here.")
    layers, log_std = [*hidden, linear(state, "action_net")], numbers(state, "log_std").ravel()
    return ImportedPolicy(FORMAT, "ppo", layers, log_std, activation="tanh", mean_kind="linear")


def _unknown(state: State) -> BadPolicy:
    return BadPolicy(
        f"its tensors ({', '.join(list(state)[:4])}, …) are of no known architecture. Wrap it in a "
        "Python function and clone that: `o2o policy clone module:function --family squashed_gaussian`."
    )


def _algorithm(data: dict[str, Any]) -> str | None:
    described = data.get("policy_class")
    module = described.get("__module__") if isinstance(described, dict) else None
    match = re.match(r"(?:stable_baselines3|sb3_contrib)\.(\w+)\.", module) if isinstance(module, str) else None
    return match[1] if match and match[1] != "common" else None


def _read_activation(policy: ImportedPolicy, data: dict[str, Any]) -> None:
    arguments = data.get("policy_kwargs")
    named = arguments.get("activation_fn") if isinstance(arguments, dict) else None
    if isinstance(named, str) and (match := re.search(r"activation\.(\w+)", named)):
        policy.activation = ACTIVATIONS.get(match[1].lower(), match[1].lower())
        return
    if not isinstance(arguments, dict) or ":serialized:" in arguments or named is not None:
        policy.notes.append(f"its activation cannot be read: {policy.activation}, the algorithm's default, is assumed")


def _read_bounds(policy: ImportedPolicy, data: dict[str, Any]) -> None:
    """PPO's actions are in the environment's units; SAC's and TD3's are squashed into [−1, 1]."""
    space = data.get("action_space")
    found = [_vector(space, name, policy.action_dim) for name in ("low", "high")] if isinstance(space, dict) else []
    low, high = found or (None, None)
    if low is None or high is None or not np.all(high > low):
        policy.notes.append("its action bounds cannot be read: [−1, 1] is assumed")
        return
    policy.bounds = (low, high)


def _vector(space: dict[str, Any], name: str, width: int) -> Array | None:
    text = space.get(name)
    text = text if isinstance(text, str) and "..." not in text else space.get(f"{name}_repr")
    values = [float(word) for word in re.findall(r"[-+]?\d+\.?\d*(?:e[-+]?\d+)?", str(text), re.IGNORECASE)]
    return np.full(width, values) if len(values) in (1, width) else None
