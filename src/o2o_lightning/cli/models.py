"""A recipe names a method, a phase holds it: which class takes which option."""

import dataclasses
import inspect
import re
from functools import cache
from pkgutil import resolve_name
from typing import Any

from jsonargparse._parameter_resolvers import get_signature_parameters

from o2o_lightning.errors import UserError
from o2o_lightning.launch import search_here
from o2o_lightning.methods.method import Method

# An option of a class's argument; what jsonargparse adds to each class is none
ARGUMENT = re.compile(r"(model|data)\.(?!(?:class_path|init_args|dict_kwargs|help)\b)(\w+)")
REQUIRED = inspect.Parameter.empty
HOLDERS = {
    "offline": "o2o_lightning.phases.offline.Offline",
    "clone": "o2o_lightning.phases.clone.ClonePolicy",
    "reevaluate": "o2o_lightning.phases.reevaluate.Reevaluate",
    "align": "o2o_lightning.phases.align.Align",
    "online": "o2o_lightning.phases.online.Online",
}
ON_POLICY = "o2o_lightning.phases.on_policy.OnPolicy"
IN_EPISODES = "o2o_lightning.phases.episodes.OnlineEpisodes"
# What version 0.1 wrote into configuration files: one class for a phase and its method
_FORMER = {
    **{name: f"{name.lower()}.{name}" for name in ("AWAC", "BC", "CQL", "DT", "IQL", "ODT")},
    **{"TD3BC": "td3_bc.TD3BC", "ClonePolicy": "clone.Clone", "OnlinePPO": "o2.ppo.Online"},
    **{f"{phase}{name}": f"o2.{name.lower()}.{phase}" for phase in ("Align", "Online") for name in ("SAC", "TD3")},
    **{f"Reevaluate{name}": f"o2.{name.lower()}.Reevaluate" for name in ("PPO", "SAC", "TD3")},
}
FORMER = {f"o2o_lightning.phases.{old}": f"o2o_lightning.methods.{new}" for old, new in _FORMER.items()}


def rule_of(path: str) -> type[Method]:
    """A user's own method, ``my_package.my_rule:MyRule``, from a module that Python finds here or is installed."""
    search_here()
    try:
        found = resolve_name(path.replace(":", "."))
    except Exception as error:  # the user's module may fail in any way
        raise UserError(
            f"{path}: {type(error).__name__}: {error}. Name a class of an importable module: my_package.my_rule:MyRule."
        ) from error
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise UserError(f"{path}: it is no Method. Derive it from o2o_lightning.methods.method.Method, or from a rule.")
    return found


def method_of(model: dict[str, Any]) -> type[Method]:
    """The method's class of a recipe's ``model``, or of one that :func:`held` has made."""
    found = resolve_name(_path(model))
    return found if issubclass(found, Method) else method_of(model["init_args"]["method"])


def held(phase: str, model: dict[str, Any], composed: dict[str, Any] | None = None) -> dict[str, Any]:
    """``model`` as LightningCLI reads it: the class of the phase, and in its arguments the method with its own.

    Args:
        phase: which holds it.
        model: of a recipe or a file: the class of a method, or of a phase, and the arguments of both together.
        composed: what a file's model is laid over, and where it takes the classes from that it does not name.
    """
    given = dict(model.get("init_args") or {})
    if composed is not None:  # a file may have them beside the class as well
        reserved = ("class_path", "init_args", "dict_kwargs")
        given = {name: value for name, value in model.items() if name not in reserved} | given
    holder = _path(model) if "class_path" in model else (composed or {})["class_path"]
    method = None if "class_path" in model or composed is None else composed["init_args"].get("method")
    if issubclass(found := resolve_name(holder), Method):
        in_episodes = phase == "online" and "window" in found.needs
        phases = ON_POLICY if found.on_policy else IN_EPISODES if in_episodes else HOLDERS[phase]
        holder, method = phases, {"class_path": holder}
    if method is None or "method" in given:
        return model
    own = {name: given.pop(name) for name in [*given] if accepts(holder, name)}
    method = {"class_path": method["class_path"], "init_args": given}
    return {"class_path": holder, "init_args": {**own, "method": method}}


def owners(part: str, config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The classes that take the options of a part of ``config``, by where their options are: a phase, then its method.

    Each with its ``class_path`` and ``init_args``.
    """
    found = {part: config[part]}
    method = (config[part].get("init_args") or {}).get("method")
    return {**found, f"{part}.method": method} if part == "model" and method else found


def place(name: str, config: dict[str, Any]) -> str | None:
    """Where the option ``name`` goes in a phase: its name there, None where the phase knows no such option.

    The only place that decides it: for options that are typed, for ``+data.x=v``, and for those that a resumed run may
    change. What is not of the model or the data, or is jsonargparse's own (``model.class_path``), stays where it is.
    """
    match = ARGUMENT.match(name)
    if match is None:
        return name
    where = (at for at, owner in owners(match[1], config).items() if accepts(owner["class_path"], match[2]))
    return next((f"{at}.{name[len(match[1]) + 1 :]}" for at in where), None)


def value_of(part: str, argument: str, config: dict[str, Any]) -> Any:
    """What the option ``model.x`` or ``data.x``, which the phase knows, is unless it is typed."""
    owner = next(owner for owner in owners(part, config).values() if accepts(owner["class_path"], argument))
    return (owner.get("init_args") or {}).get(argument, default(owner["class_path"], argument))


def said(config: dict[str, Any]) -> dict[str, str]:
    """How to call the class of a phase that holds a method: ``{"Online": "Online(td3.Online)"}``."""
    phase, *methods = (owner["class_path"].split(".") for owner in owners("model", config).values())
    return {phase[-1]: f"{phase[-1]}({'.'.join(methods[0][-2:])})"} if methods else {}


def known(part: str, config: dict[str, Any]) -> list[str]:
    """The names of all options of a part, for a guess at what was meant."""
    return [name for owner in owners(part, config).values() for name in argument_names(owner["class_path"])]


def accepts(class_path: str, name: str) -> bool:
    """Whether the class takes the argument ``name``, itself or through ``**kwargs``."""
    return name in argument_names(class_path)


def default(class_path: str, name: str) -> Any:
    """The default of the argument ``name``, as a configuration file would hold it; :data:`REQUIRED` without one."""
    value = next(parameter.default for parameter in parameters(class_path) if parameter.name == name)
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value


def argument_names(class_path: str) -> list[str]:
    """The class's arguments, with the fields of those that are settings: ``threshold``, ``threshold.end``."""
    names = []
    for parameter in parameters(class_path):
        names.append(parameter.name)
        if dataclasses.is_dataclass(parameter.default):
            names += [f"{parameter.name}.{field.name}" for field in dataclasses.fields(parameter.default)]
    return names


def _path(model: dict[str, Any]) -> str:
    path: str = model["class_path"].replace(":", ".")
    if path == "???":
        raise UserError("own: it is not said which rule. Pass offline=my_package.my_rule:MyRule, or online=… likewise.")
    return FORMER.get(path, path)


@cache
def parameters(class_path: str) -> list[Any]:
    """The class's arguments by jsonargparse's own reading, which follows ``**kwargs`` into the base class."""
    return list(get_signature_parameters(resolve_name(class_path), "__init__"))
