"""State dicts: CORL's and the paper's official checkpoints (TD3+BC, IQL, CQL, AWAC), and any plain one."""

from functools import partial
from pathlib import Path
from typing import Any

from o2o_lightning.policies.source import BadPolicy, ImportedPolicy, read_limited
from o2o_lightning.policies.tensors import State, halves, linear, load_tensors, numbers, sequence, tensors_of

FORM = "linear layers in order, `NAME.weight` and `NAME.bias`, perhaps a vector `log_std`"
# by the name of the layers: what trained them, and the tensors beside them
CORL: dict[str, tuple[str, tuple[str, ...]]] = {
    "base_network": ("cql", ("log_std_multiplier.constant", "log_std_offset.constant")),
    "_mlp": ("awac", ("_log_std",)),
    "net.net": ("iql", ("log_std",)),
    "net": ("td3_bc", ()),
}


def read_state_dict(path: Path, family: str | None = None, mean: str | None = None) -> ImportedPolicy:
    """The policy of a ``.pt`` file: one of CORL's checkpoints, or a plain state dict.

    ``family`` and ``mean`` are of a plain one, where names and shapes do not tell.

    Raises:
        BadPolicy: unreadable, or of an unknown layout.
    """
    found: Any = load_tensors(read_limited(path))
    inner = found.get("actor") if isinstance(found, dict) else None
    if inner is None and isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        inner = found["state_dict"]
    state = tensors_of(inner if isinstance(inner, dict) else found)
    if sequence(state, "actor.net") or any(key.startswith("actor.") for key in state):
        state = {key.removeprefix("actor."): value for key, value in state.items() if key.startswith("actor.")}
    policy = _corl(state) or _plain(state)
    if family is not None:
        _as_family(policy, family)
    if mean is not None:
        if policy.family != "gaussian":
            raise BadPolicy(f"it is {policy.family}, and only a Gaussian has --mean. Leave it out.")
        policy.mean_kind = mean
    if len(policy.layers) > 1:
        policy.notes.append("the file does not name its activation: ReLU is assumed (--activation for another)")
    if policy.normalizer is None:
        policy.notes.append(
            "the file holds no observation statistics: pass --normalizer if the policy learned with any"
        )
    return policy


def _corl(state: State) -> ImportedPolicy | None:
    prefix = next((prefix for prefix in CORL if sequence(state, prefix)), None)
    if prefix is None or (prefix == "_mlp" and "_log_std" not in state) or (prefix == "net" and "log_std" in state):
        return None
    algorithm, beside = CORL[prefix]
    _refuse_others(state, prefix, beside)
    policy = ImportedPolicy("CORL or official checkpoint", algorithm, sequence(state, prefix))
    if algorithm == "cql":
        policy.layers[-1], policy.log_std = halves(policy.layers[-1])
        policy.log_std_scale, policy.log_std_offset = _number(state, beside[0], 1.0), _number(state, beside[1], 0.0)
    elif beside and beside[0] in state:
        policy.log_std = numbers(state, beside[0]).ravel()
        policy.mean_kind = "linear" if algorithm == "awac" else "tanh"
    return policy


def _refuse_others(state: State, prefix: str, known: tuple[str, ...]) -> None:
    """What is neither a layer ``PREFIX.N`` nor ``known`` could change the actions, and would be lost."""
    for key in {*state} - {*known}:
        name, _, part = key.rpartition(".")
        place = name.removeprefix(f"{prefix}.")
        layer = name.startswith(f"{prefix}.") and place.isdigit() and f"{name}.weight" in state
        if not layer or part not in ("weight", "bias"):
            raise BadPolicy(
                f"beside its layers '{prefix}.N' it holds '{key}', which is not understood. Pass a "
                "state dict without it, and observation statistics as --normalizer."
            )


def _number(state: State, name: str, default: float) -> float:
    if name not in state:
        return default
    found = numbers(state, name)
    if found.size != 1:
        raise BadPolicy(f"'{name}' has shape {found.shape}, and is one number. The file is mixed up.")
    return float(found.item())


def _plain(state: State) -> ImportedPolicy:
    names = [key.removesuffix(".weight") for key, value in state.items() if key.endswith(".weight") and value.ndim == 2]
    layers = [linear(state, name) for name in names]
    vectors = [key for key in state if key.rpartition(".")[2] in ("log_std", "logstd", "raw_log_std")]
    others = {key for key in state if key.removesuffix(".weight").removesuffix(".bias") not in names} - {*vectors}
    if not layers or others:
        strange = ", ".join(sorted(others)[:3]) or "no linear layer"
        raise BadPolicy(f"its layout is not known ({strange}). Pass a state dict of {FORM}.")
    known = partial(ImportedPolicy, "state dict", "unknown")
    for i in range(1, len(layers)):
        before, after = layers[i - 1][0].shape, layers[i][0].shape
        if after[1] != before[0]:
            if i == len(layers) - 1 and after == before:  # two side by side at the end: mean and log σ
                return known(layers[:-1], layers[-1])
            raise BadPolicy(
                f"'{names[i]}' takes {after[1]} values, '{names[i - 1]}' gives {before[0]}. "
                f"Pass a state dict of {FORM}."
            )
    return known(layers, numbers(state, vectors[0]).ravel() if vectors else None)


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
