"""A perceptron read out of an ONNX graph layer by layer, and shown to act as ONNX Runtime runs the file.

A graph is no proof of a family, nor has it a σ: `o2o policy export` writes both beside it, and what of that the graph
shows must be the same.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from o2o_lightning.errors import UserError
from o2o_lightning.limits import read_json
from o2o_lightning.nn.actor import Actor
from o2o_lightning.policies.black_box import onnx_tools
from o2o_lightning.policies.exploration import SEARCH_NOISE
from o2o_lightning.policies.onnx_chain import layers_of
from o2o_lightning.policies.proof import by_program
from o2o_lightning.policies.source import BadPolicy, ImportedPolicy, Taken, check, readable

TAKES = (
    Taken("o2o-lightning", "an exported policy (extra `onnx`)", "its own"),
    Taken("any", "a graph of linear layers with a tanh at its end", "deterministic; with σ of 0.1, --family"),
    Taken("any", "a graph of linear layers without", "--family gaussian, with σ of 0.1"),
)
TRIED = 1000  # made-up states
FAMILIES = ("deterministic", "gaussian", "squashed_gaussian")


class NotLayersError(UserError):
    """The graph is no perceptron of the family that is asked for: it can be distilled."""


def read_onnx(path: Path, family: str | None = None) -> ImportedPolicy:
    """The policy of an ONNX file: of the asked ``family``, else its metadata's, else deterministic if a tanh ends it.

    Raises:
        NotLayersError: its graph is another one, or of other actions by ONNX Runtime.
        BadPolicy: unreadable, or its metadata contradicts its graph.
    """
    graph = onnx_tools().graph_of(str(path))
    policy = layers_of(graph)
    if policy is None:
        raise NotLayersError("its graph is no perceptron")
    said = None if graph.said is None else _said(graph.said)
    _as_family(policy, family, said)
    if said is not None:
        check(policy)  # σ is the metadata's
    try:
        check(policy)
        policy.program = onnx_tools().load_onnx(str(path), policy.action_dim)
        normal = policy.build_normalizer()
        noise = np.random.default_rng(0).standard_normal((TRIED, policy.observation_dim), dtype=np.float32)
        with np.errstate(all="ignore"):  # what overflows is not the same
            by_program(policy, noise * (normal.std.numpy() + normal.eps) + normal.mean.numpy(), None, None)
    except BadPolicy as error:
        raise NotLayersError(str(error)) from error
    return policy


def description(actor: Actor, origin: Mapping[str, Any]) -> str:
    """What an actor's graph does not show, as JSON: its family, log σ, and ``origin``: ``env_id``, ``layout``."""
    log_std, state = dict[str, Any](), actor.state_dict()
    if actor.spec.kind == "squashed_gaussian":
        last, rows = len(actor.spec.hidden), actor.spec.action_dim
        log_std = {name: state[f"body.linears.{last}.{name}"][rows:].tolist() for name in ("weight", "bias")}
        log_std |= {name: state[f"log_std_{name}"].item() for name in ("scale", "offset")}
    elif actor.spec.kind == "gaussian":
        log_std = {"value": state["raw_log_std"].tolist()}
    return json.dumps({"actor": actor.spec.to_dict(), "log_std": log_std, **origin})


def _said(text: str) -> dict[str, Any]:
    with readable("its metadata is not what `o2o policy export` writes", "Export it again."):
        found = read_json(text)
        log_std = {name: np.asarray(value, np.float64) for name, value in found["log_std"].items()}
        return {
            "actor": dict(found["actor"]), "log_std": log_std, "layout": tuple(map(str, found.get("layout") or ())),
            "env_id": None if found.get("env_id") is None else str(found["env_id"]),
        }  # fmt: skip


def _as_family(policy: ImportedPolicy, family: str | None, said: dict[str, Any] | None) -> None:
    """Gives a policy the asked family, or its own, and σ: the metadata's, or a constant where there is none."""
    kind = "deterministic" if policy.mean_kind == "tanh" else None
    if said is not None:
        kind, policy.env_id, policy.layout = said["actor"].get("kind"), said["env_id"], said["layout"]
        _check_said(policy, said["actor"])
    wanted = family or kind
    if wanted not in FAMILIES or (wanted != "gaussian" and policy.mean_kind != "tanh"):
        raise NotLayersError(f"its graph is not known to be {wanted or 'of any family'}")
    half = np.ones(policy.action_dim) if policy.bounds is None else (policy.bounds[1] - policy.bounds[0]) / 2
    if wanted == "deterministic":
        return
    policy.notes["spread"] = "its σ is the metadata's: no run of its graph shows it"
    with readable("its metadata has not the σ of its family", "Export it again."):
        if said is not None and kind == wanted == "gaussian":
            policy.log_std = said["log_std"]["value"] + np.log(half)
        elif said is not None and kind == wanted:
            policy.log_std = said["log_std"]["weight"], said["log_std"]["bias"]
            policy.log_std_scale, policy.log_std_offset = (float(said["log_std"][n]) for n in ("scale", "offset"))
        else:
            spread = np.log(SEARCH_NOISE * half)
            policy.log_std = spread if wanted == "gaussian" else (np.zeros_like(policy.mean[0]), spread)
            policy.notes["spread"] = f"its file has no σ: a constant {SEARCH_NOISE:g} of half the range of actions"


def _check_said(policy: ImportedPolicy, actor: dict[str, Any]) -> None:
    """Refuses metadata of another perceptron than the graph's."""
    found = policy.spec.to_dict()
    if len(policy.layers) == 1:
        policy.activation = found["activation"] = str(actor.get("activation"))
    if actor.get("kind") in ("deterministic", "squashed_gaussian"):
        actor = actor | {"mean": "tanh"}
    other = next((key for key in found if key != "kind" and actor.get(key) != found[key]), None)
    if other is not None:
        raise BadPolicy(
            f"its metadata says that its {other} is {actor.get(other)!r}, and in its graph it is {found[other]!r}. "
            "Export it again."
        )
