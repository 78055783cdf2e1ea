"""What the member ``data`` of a Stable-Baselines3 zip says: JSON, of which only plain values and texts are read.

Where a value is no JSON, Stable-Baselines3 writes its attributes as texts beside a pickle, which is left alone.
"""

import re
from typing import Any

import numpy as np

from o2o_lightning.policies.source import Array

ACTIVATIONS = {"leakyrelu": "leaky_relu", "celu": "elu"}  # of α = 1; the others have the same names as ours
_PART = re.compile(r"'([^']+)'(?::|,) (\w+)\(")
_SHAPE = re.compile(r"\((\d+(?:, ?\d+)*),?\)")
_NUMBER = re.compile(r"[-+]?\d+\.?\d*(?:e[-+]?\d+)?", re.IGNORECASE)


class Facts:
    """The texts of ``data``, asked for what they mean; None where they do not tell."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data
        found = data.get("policy_kwargs")
        self.arguments: dict[str, Any] = found if isinstance(found, dict) else {}
        self.readable = isinstance(found, dict)

    def algorithm(self) -> str | None:
        """By the policy's module, or by options that only one algorithm has."""
        described = self.data.get("policy_class")
        module = described.get("__module__") if isinstance(described, dict) else None
        match = re.match(r"(?:stable_baselines3|sb3_contrib)\.(\w+)\.", module) if isinstance(module, str) else None
        if match and match[1] != "common":
            return "ddpg" if match[1] == "td3" and self.data.get("policy_delay") == 1 else match[1]
        marks = {"cg_max_steps": "trpo", "clip_range": "ppo", "gae_lambda": "a2c"}
        return next((name for mark, name in marks.items() if mark in self.data), None)

    def activation(self) -> str | None:
        """The activation that was asked for: empty for the algorithm's default, None where that cannot be read."""
        named = self.arguments.get("activation_fn")
        if named is None:
            return "" if self.readable else None
        match = re.fullmatch(r"<class 'torch\.nn\.modules\.activation\.(\w+)'>", str(named))
        return ACTIVATIONS.get(match[1].lower(), match[1].lower()) if match else None

    def flag(self, name: str, default: bool) -> bool:
        """A truth value of ``policy_kwargs``."""
        return str(self.arguments.get(name, default)) == "True"

    def number(self, name: str, default: float) -> float:
        """A number of ``policy_kwargs``."""
        try:
            return float(self.arguments.get(name, default))
        except (TypeError, ValueError):
            return default

    def kind(self, name: str) -> str:
        """The class of ``observation_space`` or ``action_space``; empty where the text does not tell."""
        space = self.data.get(name)
        match = re.search(r"\.(\w+)'>$", str(space.get(":type:"))) if isinstance(space, dict) else None
        return match[1] if match else ""

    def shape(self) -> list[int] | None:
        """Of a Box of observations."""
        space = self.data.get("observation_space")
        found = (space.get("_shape") or space.get("shape")) if isinstance(space, dict) else None
        return found if isinstance(found, list) and all(isinstance(size, int) for size in found) else None

    def parts(self) -> dict[str, tuple[int, ...] | None]:
        """Shapes of a dictionary's parts in its own order, None for what is no Box; empty for other spaces."""
        space = self.data.get("observation_space")
        text = str(space.get("spaces")) if isinstance(space, dict) and self.kind("observation_space") == "Dict" else ""
        found: dict[str, tuple[int, ...] | None] = {}
        places = [*_PART.finditer(text)]
        ends = [*(place.start() for place in places), len(text)][1:]
        for match, end in zip(places, ends, strict=True):
            within = text[match.end() - 1 : end]
            shapes = _SHAPE.findall(within) if match[2] == "Box" else []
            found[match[1]] = tuple(int(size) for size in shapes[-1].split(",")) if shapes else None
        return found

    def bounds(self, width: int) -> tuple[Array, Array] | None:
        """Lowest and highest action ``[A]``."""
        space = self.data.get("action_space")
        if not isinstance(space, dict):
            return None
        low, high = (_vector(space, name, width) for name in ("low", "high"))
        return (low, high) if low is not None and high is not None and bool(np.all(high > low)) else None


def _vector(space: dict[str, Any], name: str, width: int) -> Array | None:
    text = space.get(name)
    text = text if isinstance(text, str) and "..." not in text else space.get(f"{name}_repr")
    values = [float(word) for word in _NUMBER.findall(str(text))]
    return np.full(width, values) if len(values) in (1, width) else None
