"""When a run must clone its policy first: the family that it has is not the one that the online algorithm needs."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import yaml

from o2o_lightning.cli.compose import Command, compose

if TYPE_CHECKING:
    from o2o_lightning.phases.base import Phase

NAMES = {
    "deterministic": ("deterministic", "a deterministic one"),
    "gaussian": ("a Gaussian", "a Gaussian"),
    "squashed_gaussian": ("a squashed Gaussian", "a squashed Gaussian"),
    "decision_transformer": ("a Decision Transformer", "a Decision Transformer"),
    "online_decision_transformer": ("an Online Decision Transformer", "an Online Decision Transformer"),
}


def with_cloning(command: Command, phases: list[str]) -> tuple[list[str], str | None]:
    """``phases`` with ``clone`` before the first one whose policy would be of another family, and a line that says so.

    The phase ``clone`` itself is composed like any other; its student's family is the key ``family``, which the
    configuration of each online algorithm sets.
    """
    if "clone" in phases:
        return phases, None
    kind = _kind_of_checkpoint(command)
    for i, phase in enumerate(phases):
        model = compose(phase, command)["model"]
        if "class_path" not in model:
            continue
        wanted = class_of(model["class_path"]).policy_family(_arguments(command, model))
        if phase == "offline":
            kind = wanted
        elif kind is not None and wanted is not None and kind != wanted:
            return [*phases[:i], "clone", *phases[i:]], _note(command, kind, wanted, model["class_path"])
    return phases, None


def class_of(path: str) -> type[Phase]:
    """The phase's class by its import path."""
    module, _, name = path.rpartition(".")
    found: type[Phase] = getattr(importlib.import_module(module), name)
    return found


def _kind_of_checkpoint(command: Command) -> str | None:
    from o2o_lightning.checkpoint.handover import read_handover

    path = command.start
    return None if path is None else str(read_handover(path).actor["kind"])


def _arguments(command: Command, model: dict[str, Any]) -> dict[str, Any]:
    """The composed arguments, with those that were typed as options."""
    arguments = dict(model.get("init_args") or {})
    for prefix in ("--model.init_args.", "--model."):
        for token in command.options:
            name = token.partition("=")[0]
            if name.startswith(prefix) and (value := command.option(name)) is not None:
                arguments[name.removeprefix(prefix)] = yaml.safe_load(value)
    return arguments


def _note(command: Command, kind: str, wanted: str, class_path: str) -> str:
    composed = compose("clone", command)
    loss = "mean square" if wanted == "deterministic" else "Eq. 52"
    return (
        f"clone: the offline policy is {NAMES[kind][0]}, {class_of(class_path).algorithm.upper()} needs "
        f"{NAMES[wanted][1]}: cloning it first ({loss}), at most {composed['trainer']['max_steps']:,} updates "
        "(steps.clone=N)"
    )
