"""State dicts: CORL's and the paper's official checkpoints, and any other whose names tell what its layers are."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from o2o_lightning.nn.normalizer import Normalizer
from o2o_lightning.policies.layers import take_apart
from o2o_lightning.policies.source import BadPolicy, ImportedPolicy, Taken, read_limited
from o2o_lightning.policies.tensors import State, halves, load_tensors, numbers, sequence, tensors_of

# where checkpoints keep the policy, or the agent that it is part of
ACTING = (
    "actor", "policy", "pi", "agent", "actor_critic", "ac", "model", "net", "network", "state_dict", "model_state_dict",
    "actor_state_dict", "policy_state_dict", "agent_state_dict",
)  # fmt: skip
NAMED = re.compile(r"action_scale|mean|mu\b|mu_|log_?std|actor|policy")
TRAINING = re.compile(r"(^|[._])(log_?)?(alpha|ent_coef|temperature|temp|alpha_prime)$")  # of entropy, not of actions
STATISTICS = re.compile(r"norm|preprocess|rms|running", re.IGNORECASE)

# by the name of the layers: what trained them, and the tensors beside them
CORL: dict[str, tuple[str, tuple[str, ...]]] = {
    "base_network": ("cql", ("log_std_multiplier.constant", "log_std_offset.constant")),
    "_mlp": ("awac", ("_log_std",)),
    "net.net": ("iql", ("log_std",)),
    "net": ("td3_bc", ()),
}


class Habit(NamedTuple):
    """What a library does that its files don't say, known by names that only it has."""

    names: str
    library: str
    activation: str = "relu"
    mean: str = "linear"  # of a Gaussian


HABITS = (
    Habit(r"actor_mean\.\d", "CleanRL's PPO", "tanh"),
    Habit(r"mlp_extractor\.|(^| )action_net\.", "Stable-Baselines3's PPO", "tanh"),
    Habit(r"mu_net\.\d", "Spinning Up's PPO", "tanh"),
    Habit(r"_mean_module\.", "garage's Gaussian", "tanh"),
    Habit(r"a2c_network\.", "rl_games's PPO", "elu"),
    Habit(r"actor\.\d+\.weight.* critic\.\d+\.weight", "RSL-RL's PPO", "elu"),
    Habit(r"log_std_parameter", "skrl's Gaussian", "elu"),
)


CORL_FAMILIES = {"cql": "squashed_gaussian", "awac": "gaussian", "iql": "gaussian", "td3_bc": "deterministic"}
TAKES = (
    *(Taken("CORL, official code", f"{name} (.pt)", CORL_FAMILIES[name]) for name, _ in CORL.values()),
    *(Taken(library, f"{which} (state dict)", "gaussian") for library, _, which in
      (habit.library.partition("'s ") for habit in HABITS)),
    Taken("any", "a layer named as log σ: log_std, fc_logstd, log_std_linear, …", "squashed_gaussian"),
    Taken("any", "a vector named as log σ or σ: log_std, actor_logstd, std, …", "gaussian"),
    Taken("any", "layers alone: net.0, fc_mu, mu_layer, …", "deterministic"),
)  # fmt: skip


class Statistics(NamedTuple):
    """How a library normalises observations by what it keeps in its checkpoints."""

    place: str
    mean: str
    spread: str
    variance_eps: float | None  # added to the variance; None where ``spread`` is a deviation
    eps: float
    clip: float | None


STATISTICS_OF = (
    Statistics("state_preprocessor", "running_mean", "running_variance", 0.0, 1e-8, 5.0),  # skrl
    Statistics("running_mean_std", "running_mean", "running_var", 1e-5, 0.0, 5.0),  # rl_games
    Statistics("obs_norm_state_dict", "_mean", "_std", None, 1e-2, None),  # RSL-RL
    Statistics("actor_obs_normalizer", "_mean", "_std", None, 1e-2, None),
)


def read_state_dict(path: Path, family: str | None = None, mean: str | None = None) -> ImportedPolicy:
    """The policy of a ``.pt`` file.

    ``family`` and ``mean`` are of one whose names and shapes do not tell.

    Raises:
        BadPolicy: unreadable, of an unknown layout, or of two that fit alike.
    """
    state = acting(load_tensors(read_limited(path)))
    policy = _corl(state) or _by_names(state, family)
    if family is not None:
        _as_family(policy, family)
    if mean is not None:
        if policy.family != "gaussian":
            raise BadPolicy(f"it is {policy.family}, and only a Gaussian has --mean. Leave it out.")
        policy.mean_kind = mean
        policy.notes.pop("mean", None)
    if policy.normalizer is None:
        policy.notes["statistics"] = (
            "the file holds no observation statistics: pass --normalizer if the policy learned with any"
        )
    return policy


def acting(found: Any) -> State:
    """The tensors of the part of a checkpoint that acts, and of its observation statistics, by dotted name."""
    if isinstance(found, (list, tuple)):
        found = _the_one({str(i): part for i, part in enumerate(found)}, [str(i) for i in range(len(found))])
    while isinstance(found, Mapping):
        inner = [name for name in ACTING if isinstance(found.get(name), Mapping) and _flat(found[name])]
        if not inner:
            break
        beside = {
            name: part
            for name, part in found.items()
            if isinstance(part, Tensor) or (isinstance(part, Mapping) and STATISTICS.search(str(name)))
        }
        found = {**beside, **_the_one(found, inner)}
    return {name: tensor for name, tensor in tensors_of(_flat(found)).items() if not TRAINING.search(name)}


def _the_one(parts: Mapping[str, Any], names: list[str]) -> Mapping[str, Any]:
    """The only part that has layers of a policy: of several state dicts, the one whose names say so."""
    if len(names) > 1:
        told = [name for name in names if NAMED.search(" ".join(_flat(parts[name])))]
        names = told if len(told) == 1 else names
    if len(names) != 1:
        raise BadPolicy(
            f"'{names[0]}' and '{names[1]}' could each be the policy. Save the policy's own `state_dict()` alone."
            if names
            else "it holds no tensors by name. Save the policy's `state_dict()` and import that."
        )
    return parts[names[0]]  # type: ignore[no-any-return]


def _flat(found: Any, prefix: str = "", depth: int = 6) -> State:
    flat: State = {}
    for name, part in found.items() if isinstance(found, Mapping) and depth else ():
        if isinstance(part, Mapping) and not re.search(r"optim|lr_sched|grad_scaler", str(name)):
            flat |= _flat(part, f"{prefix}{name}.", depth - 1)
        elif isinstance(part, Tensor):
            flat[f"{prefix}{name}"] = part
    return flat


def _corl(state: State) -> ImportedPolicy | None:
    """One of CORL's policies, where the names are exactly its own."""
    for prefix, (algorithm, beside) in CORL.items():
        layer = re.compile(rf"{re.escape(prefix)}\.\d+\.(weight|bias)")
        if not sequence(state, prefix) or any(not layer.fullmatch(name) for name in {*state} - {*beside}):
            continue
        if algorithm == "awac" and beside[0] not in state:
            continue
        policy = ImportedPolicy("CORL or official checkpoint", algorithm, sequence(state, prefix))
        policy.notes["activation"] = _assumed("relu")
        if algorithm == "cql":
            policy.layers[-1], policy.log_std = halves(policy.layers[-1])
            policy.log_std_scale, policy.log_std_offset = _number(state, beside[0], 1.0), _number(state, beside[1], 0.0)
        elif beside and beside[0] in state:
            policy.log_std = numbers(state, beside[0]).ravel()
            policy.mean_kind = "linear" if algorithm == "awac" else "tanh"
        return policy
    return None


def _number(state: State, name: str, default: float) -> float:
    found = numbers(state, name) if name in state else np.array(default)
    if found.size != 1:
        raise BadPolicy(f"'{name}' has shape {found.shape}, and is one number. The file is mixed up.")
    return float(found.item())


def _by_names(state: State, family: str | None) -> ImportedPolicy:
    normalizer = _statistics(state)
    said = " ".join(sorted(state))
    habit = next((habit for habit in HABITS if re.search(habit.names, said)), None)
    parts = take_apart(state)
    if parts.log_std is None and parts.on_policy and family is None:
        raise BadPolicy(
            f"beside '{parts.on_policy}', a value of states, it has no log σ, so that its family is not told. "
            "Pass --family deterministic, or a state dict with its log_std."
        )
    policy = ImportedPolicy("state dict", "unknown", parts.layers, parts.log_std, normalizer=normalizer)
    policy.log_std_scale, policy.log_std_offset = parts.log_std_scale, parts.log_std_offset
    policy.reach = parts.reach
    policy.notes |= parts.notes
    if policy.family == "gaussian" and habit is not None:
        policy.mean_kind = habit.mean
        policy.notes["mean"] = f"its names are those of {habit.library}: the mean is {habit.mean} (--mean for another)"
    elif policy.family == "gaussian":
        policy.notes["mean"] = (
            "the file does not tell whether its mean goes through a tanh: assumed (--mean for another)"
        )
    if len(policy.layers) > 1:
        known = habit if policy.family == "gaussian" else None
        policy.activation = known.activation if known else "relu"
        policy.notes["activation"] = _assumed(policy.activation, known and known.library)
    return policy


def _assumed(activation: str, library: str | None = None) -> str:
    shown = {"relu": "ReLU", "elu": "ELU"}.get(activation, activation)
    default = f", {library}'s default," if library else ""
    return f"the file does not name its activation: {shown}{default} is assumed (--activation for another)"


def _statistics(state: State) -> Normalizer | None:
    """The normaliser of a library that keeps it in its checkpoints; its tensors leave ``state``."""
    for known in STATISTICS_OF:
        held = {name.rpartition(".")[2]: name for name in state if known.place in name.split(".")}
        if known.mean not in held or known.spread not in held:
            continue
        mean, spread = (numbers(state, held[name]).ravel() for name in (known.mean, known.spread))
        std = spread if known.variance_eps is None else np.sqrt(spread + known.variance_eps)
        for name in held.values():
            del state[name]
        return Normalizer(torch.from_numpy(mean).float(), torch.from_numpy(std).float(), known.eps, known.clip)
    return None


def _as_family(policy: ImportedPolicy, family: str) -> None:
    if family == policy.family:
        return
    if family == "squashed_gaussian" and policy.family == "deterministic" and policy.action_dim % 2 == 0:
        policy.layers[-1], policy.log_std = halves(policy.layers[-1])
    elif family == "deterministic":
        if policy.family == "gaussian" and policy.mean_kind == "linear":
            raise BadPolicy("its mean has no tanh. Import it as it is, then clone it: `o2o policy clone`.")
        policy.log_std = None
    else:
        raise BadPolicy(f"it is {policy.family}, not {family}. Leave --family out, or clone it afterwards.")
