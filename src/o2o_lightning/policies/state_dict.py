"""State dicts: CORL's and the paper's official checkpoints (TD3+BC, IQL, CQL, AWAC), and any plain one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from o2o_lightning.errors import UserError
from o2o_lightning.policies.source import MAX_BYTES, ImportedPolicy
from o2o_lightning.policies.tensors import State, linear, load_tensors, numbers, read_limited, sequence, tensors_of

FORM = "linear layers in order, `NAME.weight` and `NAME.bias`, perhaps a vector `log_std`"


def read_state_dict(path: Path, family: str | None = None, mean: str | None = None) -> ImportedPolicy:
    """The policy of a ``.pt`` file: one of CORL's checkpoints, or a plain state dict.

    Args:
        path: a file of ``torch.save``.
        family, mean: of a plain state dict, where names and shapes do not tell.

    Raises:
        UserError: unreadable, or of an unknown layout.
    """
    found: Any = load_tensors(read_limited(path, MAX_BYTES), str(path))
    inner = found.get("actor") if isinstance(found, dict) else None
    if inner is None and isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        inner = found["state_dict"]
    state = tensors_of(inner if isinstance(inner, dict) else found, str(path))
    if sequence(state, "actor.net", path) or any(key.startswith("actor.") for key in state):
        state = {key.removeprefix("actor."): value for key, value in state.items() if key.startswith("actor.")}
    policy = _corl(state, path) or _plain(state, path)
    if family is not None:
        _as_family(policy, family, path)
    if mean is not None:
        if policy.family != "gaussian":
            raise UserError(f"policy {path}: it is {policy.family}, and only a Gaussian has --mean. Leave it out.")
        policy.mean_kind = mean
    if policy.hidden:
        policy.notes.append("the file does not name its activation: ReLU is assumed (--activation for another)")
    if policy.normalizer is None:
        policy.notes.append(
            "the file holds no observation statistics: pass --normalizer if the policy learned with any"
        )
    return policy


def _corl(state: State, path: Path) -> ImportedPolicy | None:
    name = "CORL or official checkpoint"
    if layers := sequence(state, "base_network", path):
        offset, scale = "log_std_offset.constant", "log_std_multiplier.constant"
        _refuse_others(state, "base_network", (offset, scale), path)
        weight, bias = layers[-1]
        half = weight.shape[0] // 2
        return ImportedPolicy(
            str(path), name, "cql", "squashed_gaussian", layers[:-1],
            (weight[:half], bias[:half]), (weight[half:], bias[half:]),
            log_std_scale=_number(state, scale, path) if scale in state else 1.0,
            log_std_offset=_number(state, offset, path) if offset in state else 0.0,
        )  # fmt: skip
    if layers := sequence(state, "_mlp", path):
        if "_log_std" not in state:
            return None
        _refuse_others(state, "_mlp", ("_log_std",), path)
        log_std = numbers(state, "_log_std", path).ravel()
        return ImportedPolicy(str(path), name, "awac", "gaussian", layers[:-1], layers[-1], log_std, mean_kind="linear")
    if layers := sequence(state, "net.net", path):
        _refuse_others(state, "net.net", ("log_std",), path)
        if "log_std" in state:
            log_std = numbers(state, "log_std", path).ravel()
            return ImportedPolicy(str(path), name, "iql", "gaussian", layers[:-1], layers[-1], log_std)
        return ImportedPolicy(str(path), name, "iql", "deterministic", layers[:-1], layers[-1])
    if (layers := sequence(state, "net", path)) and "log_std" not in state:
        _refuse_others(state, "net", (), path)
        return ImportedPolicy(str(path), name, "td3_bc", "deterministic", layers[:-1], layers[-1])
    return None


def _refuse_others(state: State, prefix: str, known: tuple[str, ...], path: Path) -> None:
    """What is neither a layer ``PREFIX.N`` nor ``known`` could change the actions, and would be lost."""
    for key in {*state} - {*known}:
        name, _, part = key.rpartition(".")
        place = name.removeprefix(f"{prefix}.")
        layer = name.startswith(f"{prefix}.") and place.isdigit() and f"{name}.weight" in state
        if not layer or part not in ("weight", "bias"):
            raise UserError(
                f"policy {path}: beside its layers '{prefix}.N' it holds '{key}', which is not understood. Pass a "
                "state dict without it, and observation statistics as --normalizer."
            )


def _number(state: State, name: str, path: Path) -> float:
    found = numbers(state, name, path)
    if found.size != 1:
        raise UserError(f"policy {path}: '{name}' has shape {found.shape}, and is one number. The file is mixed up.")
    return float(found.item())


def _plain(state: State, path: Path) -> ImportedPolicy:
    names = [key.removesuffix(".weight") for key, value in state.items() if key.endswith(".weight") and value.ndim == 2]
    layers = [linear(state, name, path) for name in names]
    vectors = [key for key in state if key.rpartition(".")[2] in ("log_std", "logstd", "raw_log_std")]
    others = {key for key in state if key.removesuffix(".weight").removesuffix(".bias") not in names} - {*vectors}
    if not layers or others:
        strange = ", ".join(sorted(others)[:3]) or "no linear layer"
        raise UserError(f"policy {path}: its layout is not known ({strange}). Pass a state dict of {FORM}.")
    for i in range(1, len(layers)):
        if layers[i][0].shape[1] != layers[i - 1][0].shape[0]:
            twin = i == len(layers) - 1 and layers[i][0].shape == layers[i - 1][0].shape
            if not twin:
                raise UserError(
                    f"policy {path}: '{names[i]}' takes {layers[i][0].shape[1]} values, '{names[i - 1]}' gives "
                    f"{layers[i - 1][0].shape[0]}. Pass a state dict of {FORM}."
                )
            # two layers side by side at the end: mean and log σ
            return ImportedPolicy(
                str(path), "state dict", "unknown", "squashed_gaussian", layers[:-2], layers[-2], layers[-1]
            )
    if vectors:
        log_std = numbers(state, vectors[0], path).ravel()
        return ImportedPolicy(str(path), "state dict", "unknown", "gaussian", layers[:-1], layers[-1], log_std)
    return ImportedPolicy(str(path), "state dict", "unknown", "deterministic", layers[:-1], layers[-1])


def _as_family(policy: ImportedPolicy, family: str, path: Path) -> None:
    if family == policy.family:
        return
    weight, bias = policy.mean
    if family == "squashed_gaussian" and policy.family == "deterministic" and weight.shape[0] % 2 == 0:
        half = weight.shape[0] // 2
        policy.mean, policy.log_std = (weight[:half], bias[:half]), (weight[half:], bias[half:])
    elif family == "deterministic":
        if policy.family == "gaussian" and policy.mean_kind == "linear":
            raise UserError(
                f"policy {path}: its mean has no tanh. Import it as it is, then clone it: `o2o policy clone`."
            )
        policy.log_std = None
    else:
        raise UserError(
            f"policy {path}: it is {policy.family}, not {family}. Leave --family out, or clone it afterwards."
        )
    policy.family = family
