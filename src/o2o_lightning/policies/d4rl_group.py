"""The policy that D4RL stores inside a dataset file, the group ``metadata/policy``: read, and made."""

import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from o2o_lightning.data.guarded import dataset, find, numbers, open_hdf5
from o2o_lightning.nn.actor import Actor
from o2o_lightning.nn.gaussian import GaussianActor
from o2o_lightning.nn.normalizer import Normalizer
from o2o_lightning.nn.squashed_gaussian import SquashedGaussianActor
from o2o_lightning.policies.remaining_time import hold_time
from o2o_lightning.policies.source import Array, BadPolicy, ImportedPolicy, Linear, Taken

GROUP = "metadata/policy"
DISTRIBUTIONS = {"squashed_gaussian": "tanh_gaussian", "gaussian": "gaussian", "deterministic": "deterministic"}
TAKES = tuple(
    Taken("D4RL, o2o data make", f"{GROUP} of a dataset: {name}", family) for family, name in DISTRIBUTIONS.items()
)


def read_d4rl(path: Path, time_feature: float | None = None) -> ImportedPolicy:
    """The policy of a D4RL-style HDF5 file.

    An input that the dataset's observations lack, the remaining time, is held at ``time_feature``.

    Raises:
        BadPolicy: no such group, or a layout that is not D4RL's.
    """
    with open_hdf5(path, str(path)) as file:
        group = find(file, GROUP)
        if not isinstance(group, h5py.Group):
            raise BadPolicy(f"the file has no '{GROUP}', so it holds no policy. Pass another file.")
        seen = dataset(file, "observations")
        width = int(seen.shape[1]) if seen is not None and len(seen.shape or ()) == 2 else None
        meta = {name: _text(file, f"metadata/{name}") for name in ("env_id", "algorithm", "source")}
        policy = _perceptron(group, (meta["algorithm"] or "unknown").lower())
        policy.env_id = meta["env_id"]
        policy.normalizer = _normalizer(group)
    if width is not None and policy.observation_dim == width + 1:
        if time_feature is None and "TimeFeature" not in (meta["source"] or ""):
            raise BadPolicy(
                f"it takes {width + 1} observation values, the file's have {width}. If the last "
                "is the remaining time (1 at an episode's start), pass --time_feature 0.7 to hold it there."
            )
        policy.time_column = width
        hold_time(policy, time_feature)
    return policy


def policy_group(actor: Actor, normalizer: Normalizer) -> dict[str, Any]:
    """``actor``, which acts in ``[-1, 1]``, as the arrays and texts of the group, by name.

    D4RL's own files know neither a deterministic policy nor a Gaussian whose mean goes through a tanh: these are named
    by ``output_distribution`` and ``mean_output``. Of other families it says nothing.
    """
    if actor.kind not in DISTRIBUTIONS:
        return {}
    state = {name: value.detach().cpu().numpy() for name, value in actor.state_dict().items()}
    layers = [f"fc{i}" for i in range(len(actor.spec.hidden))] + ["last_fc"]
    group: dict[str, Any] = {"nonlinearity": actor.spec.activation, "output_distribution": DISTRIBUTIONS[actor.kind]}
    for i, layer in enumerate(layers):
        for part in ("weight", "bias"):
            group[f"{layer}/{part}"] = state[f"body.linears.{i}.{part}"]
    if isinstance(actor, SquashedGaussianActor):
        scale, offset = state["log_std_scale"], state["log_std_offset"]
        for part, shift in (("weight", np.float32(0.0)), ("bias", offset)):
            group[f"last_fc/{part}"], raw = np.split(group[f"last_fc/{part}"], 2)
            group[f"last_fc_log_std/{part}"] = scale * raw + shift
    elif isinstance(actor, GaussianActor):
        group["log_std"] = np.clip(state["raw_log_std"], *actor.log_std_bounds)
        group["mean_output"] = actor.spec.mean
    scale = normalizer.std + normalizer.eps
    if normalizer.clip is not None:
        group["obs_clip"] = np.float64(normalizer.clip)
    if normalizer.clip is not None or bool((normalizer.mean != 0).any() or (scale != 1).any()):
        group |= {"obs_mean": normalizer.mean.cpu().numpy(), "obs_std": scale.cpu().numpy()}
    return group


def _perceptron(group: h5py.Group, algorithm: str) -> ImportedPolicy:
    hidden = [f"fc{i}" for i in range(sum(bool(re.fullmatch(r"fc\d+", name)) for name in group))]
    layers = [_linear(group, name) for name in (*hidden, "last_fc")]
    kind, activation = _text(group, "output_distribution"), _text(group, "nonlinearity") or "relu"
    policy = ImportedPolicy(GROUP, algorithm, layers, activation=activation)
    if kind == "tanh_gaussian":
        policy.log_std = _linear(group, "last_fc_log_std")
    elif kind == "gaussian":
        vector = "last_fc_log_std/bias" if dataset(group, "log_std") is None else "log_std"
        policy.log_std = _array(group, vector).ravel()
        mean = _text(group, "mean_output")
        policy.mean_kind = "tanh" if mean == "tanh" else "linear"
        if mean is not None:  # our own file, whose policy acts in [-1, 1] whatever the environment's units
            policy.bounds = (-np.ones(policy.action_dim), np.ones(policy.action_dim))
    elif kind != "deterministic":
        raise BadPolicy(f"its output_distribution is '{kind}'; tanh_gaussian and gaussian are known.")
    return policy


def _normalizer(group: h5py.Group) -> Normalizer | None:
    if dataset(group, "obs_mean") is None or dataset(group, "obs_std") is None:
        return None
    mean, std = (torch.from_numpy(_array(group, name, 1)).float() for name in ("obs_mean", "obs_std"))
    clip = float(_array(group, "obs_clip", 0)) if dataset(group, "obs_clip") is not None else None
    return Normalizer(mean, std, 0.0, clip)


def _linear(group: h5py.Group, name: str) -> Linear:
    return _array(group, f"{name}/weight", 2), _array(group, f"{name}/bias", 1)


def _array(group: h5py.Group, name: str, ndim: int | None = None) -> Array:
    found = dataset(group, name)
    if found is None:
        raise BadPolicy(f"'{GROUP}/{name}' is missing. The group is incomplete; pass another file.")
    if found.dtype.kind not in "fiu" or ndim not in (None, found.ndim):
        raise BadPolicy(f"'{GROUP}/{name}' is {found.dtype} {found.shape}, which a policy's is not. Pass another file.")
    return np.asarray(numbers(found), np.float64)


def _text(group: h5py.Group, name: str) -> str | None:
    found = dataset(group, name)
    if found is None or found.shape != ():
        return None
    value = found[()]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
