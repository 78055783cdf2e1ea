"""Policy files of other libraries, made in memory: layouts as their source code names tensors, weights random."""

from __future__ import annotations

import io
import json
import pickle
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor, nn

OBSERVATIONS, ACTIONS = 3, 1  # Pendulum-v1's


def perceptron(sizes: list[int], activation: type[nn.Module], last: type[nn.Module] | None = None) -> nn.Sequential:
    """Linear layers at even positions, activations between, as ``nn.Sequential`` numbers them."""
    layers: list[nn.Module] = []
    for i in range(len(sizes) - 1):
        layers += [nn.Linear(sizes[i], sizes[i + 1]), activation()]
    layers = layers[:-1]
    net = nn.Sequential(*layers, *([] if last is None else [last()]))
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.5)
    return net


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{key}": value for key, value in state.items()}


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def box(width: int = ACTIONS, bound: float = 2.0) -> dict[str, Any]:
    """A Box as Stable-Baselines3's JSON has it: plain strings beside a pickle."""
    return {
        ":type:": "<class 'gymnasium.spaces.box.Box'>",
        ":serialized:": "gAWVAAAAAAAAAAAu",
        "low": str(np.full(width, -bound, np.float32)),
        "high": str(np.full(width, bound, np.float32)),
    }


def sb3_zip(path: Path, state: dict[str, Tensor], module: str = "stable_baselines3.sac.policies", **data: Any) -> Path:
    described = {
        "policy_class": {":type:": "<class 'abc.ABCMeta'>", "__module__": module},
        "action_space": box(),
        **data,
    }
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", json.dumps({"policy_kwargs": {}, **described}))
        archive.writestr("policy.pth", saved(state))
        archive.writestr("_stable_baselines3_version", "2.4.0")
    return path


def sb3_sac() -> tuple[dict[str, Tensor], Any]:
    trunk = perceptron([OBSERVATIONS, 16, 8, 8], nn.ReLU)[:4]  # two hidden layers, each with its ReLU
    mean, log_std = nn.Linear(8, ACTIONS), nn.Linear(8, ACTIONS)
    critic = perceptron([OBSERVATIONS + ACTIONS, 8, 1], nn.ReLU)
    state = {
        **prefixed("actor.latent_pi", trunk.state_dict()),
        **prefixed("actor.mu", mean.state_dict()),
        **prefixed("actor.log_std", log_std.state_dict()),
        **prefixed("critic.qf0", critic.state_dict()),
    }
    return state, lambda x: torch.tanh(mean(trunk(x)))


def sb3_td3() -> tuple[dict[str, Tensor], Any]:
    net = perceptron([OBSERVATIONS, 12, 8, ACTIONS], nn.ReLU, nn.Tanh)
    return {**prefixed("actor.mu", net.state_dict()), **prefixed("actor_target.mu", net.state_dict())}, net


def sb3_ppo(activation: type[nn.Module] = nn.Tanh, width: int = ACTIONS) -> tuple[dict[str, Tensor], Any]:
    trunk = perceptron([OBSERVATIONS, 16, 8, 8], activation)[:4]
    head = nn.Linear(8, width)
    state = {
        "log_std": torch.full((width,), -0.7),
        **prefixed("mlp_extractor.policy_net", trunk.state_dict()),
        **prefixed("mlp_extractor.value_net", trunk.state_dict()),
        **prefixed("action_net", head.state_dict()),
        **prefixed("value_net", nn.Linear(8, 1).state_dict()),
    }
    return state, lambda x: head(trunk(x))  # in the environment's own units, clipped when acting


def vecnormalize(path: Path, mean: Any, var: Any, protocol: int = 4, **changes: Any) -> Path:
    """A VecNormalize pickle, from stand-ins that carry Stable-Baselines3's names while it is written.

    ``mean`` and ``var`` are arrays, or dictionaries of those of the parts that are normalised.
    """
    places = {
        "VecNormalize": "stable_baselines3.common.vec_env.vec_normalize",
        "RunningMeanStd": "stable_baselines3.common.running_mean_std",
        "Box": "gymnasium.spaces.box_of_a_test",
    }
    made: dict[str, Any] = {}
    before = {place: sys.modules.get(place) for place in places.values()}
    parents = ("stable_baselines3", "stable_baselines3.common", "stable_baselines3.common.vec_env")
    before |= {parent: sys.modules.get(parent) for parent in parents}
    sys.modules.update({parent: types.ModuleType(parent) for parent in parents})
    for name, place in places.items():
        made[name] = type(name, (), {"__module__": place})
        sys.modules[place] = types.ModuleType(place)
        setattr(sys.modules[place], name, made[name])
    try:

        def moments(mean: np.ndarray, var: np.ndarray) -> Any:
            found = made["RunningMeanStd"]()
            found.__dict__.update(mean=mean, var=var, count=np.float64(123.0))
            return found

        whole, space = made["VecNormalize"](), made["Box"]()
        by_part = isinstance(mean, dict)
        statistics = {name: moments(mean[name], var[name]) for name in mean} if by_part else moments(mean, var)
        space.__dict__.update(low=np.full(3, -np.inf), rng=np.random.RandomState(0))
        whole.__dict__.update(
            {"obs_rms": statistics, "clip_obs": 10.0, "epsilon": 1e-8, "norm_obs": True, "space": space, **changes}
        )
        path.write_bytes(pickle.dumps(whole, protocol))
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
    return path


def d4rl_file(path: Path, distribution: str = "tanh_gaussian", observations: int = OBSERVATIONS) -> tuple[Path, Any]:
    trunk, head = perceptron([observations, 16, 8, 8], nn.ReLU)[:4], nn.Linear(8, ACTIONS)
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file["observations"] = rng.normal(size=(50, OBSERVATIONS)).astype(np.float32)
        file["actions"] = rng.uniform(-2, 2, (50, ACTIONS)).astype(np.float32)
        file["rewards"] = np.zeros(50, np.float32)
        file["terminals"], file["timeouts"] = np.zeros(50, np.bool_), np.arange(50) % 10 == 9
        file["metadata/env_id"], file["metadata/algorithm"] = "Pendulum-v1", "SAC"
        group = file.create_group("metadata/policy")
        for name, layer in (("fc0", trunk[0]), ("fc1", trunk[2]), ("last_fc", head)):
            group[f"{name}/weight"] = layer.weight.detach().numpy()
            group[f"{name}/bias"] = layer.bias.detach().numpy()
        group["nonlinearity"], group["output_distribution"] = "relu", distribution
        if distribution == "gaussian":
            group["log_std"] = np.full(ACTIONS, -1.0, np.float32)
        else:
            group["last_fc_log_std/weight"] = np.zeros((ACTIONS, 8), np.float32)
            group["last_fc_log_std/bias"] = np.full(ACTIONS, -1.0, np.float32)
    return path, lambda x: head(trunk(x))


class Payload:
    """Unpickled, it creates the file ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")
