"""``o2o policy list`` and ``inspect``: what can come in, and what a file holds."""

import argparse
import json
from contextlib import suppress
from typing import Any

from o2o_lightning.checkpoint.handover import read_handover
from o2o_lightning.cli.policy_import import facts_of, read
from o2o_lightning.cli.show import show_facts, show_rows
from o2o_lightning.envs.make import env_spec
from o2o_lightning.errors import UserError
from o2o_lightning.policies import black_box
from o2o_lightning.policies.onnx_layers import NotLayersError
from o2o_lightning.policies.read import READERS, describe
from o2o_lightning.policies.source import ImportedPolicy, reading


def show_list(arguments: argparse.Namespace) -> int:
    """What the readers take, by their own declarations."""
    rows = [{"format": name, **taken._asdict()} for name, takes in READERS.items() for taken in takes]
    if arguments.json:
        print(json.dumps(rows, indent=2))
    else:
        show_rows("policies that can come in: `o2o policy import FILE`", rows)
    return 0


def inspect(arguments: argparse.Namespace, found: tuple[str, str] | None) -> int:
    """Facts and layers of a file of the format ``found``, with what it was recognised by; None: our checkpoint."""
    policy: ImportedPolicy | None = None
    if found is None:
        facts = _checkpoint_facts(arguments.file)
    elif found[0] in black_box.FORMATS and (policy := _layered(arguments, found[0])) is None:
        facts = {"file": arguments.file, "format": found[0], "recognised_by": found[1], "notes": ["a black box"]}
        facts |= _onnx_facts(arguments.file) if found[0] == "onnx" else {}
    else:
        policy = policy or read(arguments, found[0])
        facts = facts_of(policy, *found) | {"layers": _layers(policy), "spaces": _spaces(policy)}
    if arguments.json:
        print(json.dumps(facts, indent=2))
        return 0
    layers = facts.pop("layers", [])
    texts = {key: "; ".join(map(str, value)) if isinstance(value, list) else value for key, value in facts.items()}
    shown = {key.replace("_", " "): "–" if text in (None, "") else str(text) for key, text in texts.items()}
    show_facts(arguments.file, shown)
    if layers:
        show_rows("layers", layers)
    return 0


def _layered(arguments: argparse.Namespace, format: str) -> ImportedPolicy | None:
    """The perceptron that an ONNX graph is, if it is one."""
    with suppress(NotLayersError):
        return read(arguments, format) if format == "onnx" else None
    return None


def _layers(policy: ImportedPolicy) -> list[dict[str, Any]]:
    output = "tanh" if policy.family != "gaussian" or policy.mean_kind == "tanh" else "none"
    last = len(policy.layers) - 1
    rows = [_layer("hidden" if i < last else "mean", weight.shape, policy.activation if i < last else output)
            for i, (weight, _) in enumerate(policy.layers)]  # fmt: skip
    if isinstance(policy.log_std, tuple):
        rows.append(_layer("log σ", policy.log_std[0].shape, "none"))
    elif policy.log_std is not None:
        rows.append({"layer": "log σ", "takes": "–", "gives": len(policy.log_std), "activation": "none"})
    return rows


def _layer(name: str, shape: tuple[int, ...], activation: str) -> dict[str, Any]:
    return {"layer": name, "takes": shape[1], "gives": shape[0], "activation": activation}


def _spaces(policy: ImportedPolicy) -> str:
    bounds = policy.bounds or policy.reach
    units = "[-1, 1]" if policy.bounds is None else "the units of its bounds"
    if policy.family == "gaussian" and policy.mean_kind == "linear" and bounds is None:
        units = "the environment's units"
    text = f"observations [{policy.observation_dim}] to actions [{policy.action_dim}] in {units}"
    return text if bounds is None else f"{text}, {bounds[0].tolist()} to {bounds[1].tolist()}"


def _onnx_facts(file: str) -> dict[str, Any]:
    with reading(file):
        return dict(black_box.onnx_tools().facts(file))


def _checkpoint_facts(file: str) -> dict[str, Any]:
    source = read_handover(file)
    nets = ("actor", "offline_actor", "target_actor", "reference", "critic", "target_critic", "value")
    actor = {name: value for name, value in source.build_policy().state_dict().items() if name.endswith("weight")}
    return {
        "file": file, "format": "o2o checkpoint", "phase": source.phase, "algorithm": source.algorithm, **source.actor,
        "normalizer": describe(source.build_normalizer()), "env_id": source.env_id,
        "action_bounds": _bounds(source.env_id, source.actor["observation_dim"], source.layout),
        "dataset": source.manifest.get("source"), "networks": [name for name in nets if source.has(name)],
        "scores": source.scores, "returns": source.returns, "versions": source.versions,
        "layers": [{"layer": name, "shape": list(value.shape)} for name, value in actor.items()],
    }  # fmt: skip


def _bounds(env_id: str | None, width: int, layout: Any) -> list[list[float]] | None:
    """Of the environment, where it is installed and a file may name it."""
    if env_id is None or ":" in env_id:
        return None
    try:
        env = env_spec(env_id, width, layout)
    except UserError:
        return None
    return [env.action_low.tolist(), env.action_high.tolist()]
