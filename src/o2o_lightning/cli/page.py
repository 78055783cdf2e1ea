"""``o2o fit --phase PHASE --help``: every option of a phase with its value and meaning, on two screens."""

import dataclasses
import re
import shutil
import textwrap
from collections.abc import Iterator
from pkgutil import resolve_name
from typing import Any, Literal, get_args, get_origin

import docstring_parser
import yaml
from lightning import Trainer

from o2o_lightning.cli.command import Command
from o2o_lightning.cli.compose import compose, lightning_config
from o2o_lightning.cli.models import REQUIRED, owners, parameters

TRAINER = (
    "max_steps", "accelerator", "devices", "strategy", "precision", "log_every_n_steps", "callbacks", "logger",
    "profiler", "enable_progress_bar",
)  # fmt: skip
HIDDEN = ("method", "args", "kwargs")
ROLE = re.compile(r":\w+:`~?([^`]+)`")
INDENT = 40


def phase_page(command: Command) -> str:
    """The options of the phase, its method, its data, and those of the Trainer that are changed most."""
    config = lightning_config(command.phase, compose(command.phase, command))
    lines = [f"o2o fit --phase {command.phase} [group=option …] [--name value …]"]
    for part in ("model", "data"):
        for owner in owners(part, config).values():
            kind, given = resolve_name(owner["class_path"]), owner.get("init_args") or {}
            lines += ["", _plain(kind.__doc__ or "").partition("\n")[0]]
            for parameter in parameters(owner["class_path"]):
                if parameter.name not in HIDDEN:
                    value = given.get(parameter.name, parameter.default)
                    doc = parameter.doc or _shared_meaning(kind, parameter.name)
                    lines += _entries(f"--{part}.{parameter.name}", value, parameter.annotation, doc)
    lines += ["", "The Trainer; all of its options are in Lightning's documentation:"]
    values = config["trainer"]
    for parameter in parameters(f"{Trainer.__module__}.{Trainer.__qualname__}"):
        if parameter.name in TRAINER:
            value = values.get(parameter.name, parameter.default)
            shown = "…" if isinstance(value, list | dict) else _shown(value)
            lines += _entry(f"--trainer.{parameter.name}", shown, (parameter.doc or "").partition(". ")[0])
    ends = "The value behind an option is what it is without being typed. `--print_config` writes all of them as YAML."
    return "\n".join([*lines, "", ends, ""])


def _entries(name: str, value: Any, annotation: Any, doc: str) -> Iterator[str]:
    """An option's lines; of settings, those of each of their fields."""
    kinds = (annotation, *get_args(annotation))
    kind: Any = next((kind for kind in kinds if dataclasses.is_dataclass(kind)), None)
    if kind is None:
        literals = [str(choice) for choice in get_args(annotation)] if get_origin(annotation) is Literal else []
        chosen = f"one of {', '.join(literals)}. " if literals and not all(text in doc for text in literals) else ""
        yield from _entry(name, _shown(value), chosen + doc)
        return
    given = value if isinstance(value, dict) else vars(value) if isinstance(value, kind) else {}
    for parameter in parameters(f"{kind.__module__}.{kind.__qualname__}"):
        field = given.get(parameter.name, parameter.default)
        meaning = parameter.doc or _shared_meaning(kind, parameter.name)
        yield from _entries(f"{name}.{parameter.name}", field, parameter.annotation, meaning)


def _entry(name: str, value: str, doc: str) -> list[str]:
    head = f"  {name} {value}"
    width = max(min(shutil.get_terminal_size().columns, 120) - 1, INDENT + 30)
    body = textwrap.wrap(_plain(" ".join(doc.split())), width - INDENT) or [""]
    first = [f"{head:<{INDENT - 1}} {body.pop(0)}".rstrip()] if len(head) < INDENT else [head]
    return [*first, *(f"{'':{INDENT}}{line}" for line in body if line)]


def _shared_meaning(kind: type, name: str) -> str:
    """What a docstring says of several arguments at once, ``policy_noise, noise_clip: …``."""
    for base in kind.__mro__:
        for entry in docstring_parser.parse(base.__dict__.get("__doc__") or "").params:
            if name in re.split(r",\s*", entry.arg_name):
                return entry.description or ""
    return ""


def _shown(value: Any) -> str:
    if value is REQUIRED:
        return "…"
    if repr(value) == "<factory>":  # how a signature shows the default of a field that is made anew: env_kwargs
        return "{}"
    text: str = yaml.safe_dump(list(value) if isinstance(value, tuple) else value, default_flow_style=True, width=1000)
    return text.removesuffix("\n").removesuffix("\n...")


def _plain(text: str) -> str:
    return ROLE.sub(lambda role: role[1].rpartition(".")[2], text).replace("``", "")
