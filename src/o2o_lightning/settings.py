"""Options as plain values, which a checkpoint and a configuration may hold, and back."""

import dataclasses
import inspect
from typing import Any


def plain(value: Any) -> Any:
    """``value`` as what a checkpoint and a configuration may hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if isinstance(value, bool | int | float | str | None) else str(value)


def settings(kind: type, given: dict[str, Any]) -> dict[str, Any]:
    """Plain arguments of a class as it takes them: dataclasses where its defaults are, tuples for lists."""
    defaults = {
        parameter.name: parameter.default
        for base in reversed(kind.__mro__)
        if "__init__" in vars(base)
        for parameter in inspect.signature(vars(base)["__init__"]).parameters.values()
    }
    made = {}
    for name, value in given.items():
        default = defaults.get(name)
        if isinstance(value, dict) and dataclasses.is_dataclass(default):
            kept: Any = type(default)
            value = kept(**settings(kept, value))
        made[name] = tuple(value) if isinstance(value, list) else value
    return made
