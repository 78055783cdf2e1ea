"""What the name of a layer, a tensor or an output says that it is, in the words of the libraries."""

import re
from collections.abc import Iterable

# by the words between dots, underscores and digits; the first that fits
_MEANINGS = (
    ("copy", r"target|targ|old|ema|behaviou?r|bc|polyak"),
    ("log_std", r"log_?(std|stddev|sigma|scale)s?|init_std"),
    ("log_var", r"log_?(var|variance)s?"),
    ("value", r"v|vf|values?|vnet|critics?|baseline|advantage|q|qs|qf|qnet|qfs|twinq|dueling"),
    ("std", r"std|stds|stddev|sigmas?|scale|var|variance|cov"),
    ("mean", r"mean|means|mu|loc|actions?|pi|policy|actor|last|deterministic"),
)
_PATTERNS = [(meaning, re.compile(rf"(?:^|_)(?:{words})(?:_|$)")) for meaning, words in _MEANINGS]


def meaning(name: str) -> str | None:
    """What one part of a dotted name says: ``mean``, ``log_std``, ``log_var``, ``std``, ``value``, ``copy`` or nothing.

    ``copy`` is of a network that follows or preceded the policy.
    """
    words = "_".join(re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()))
    return next((found for found, pattern in _PATTERNS if pattern.search(words)), None)


def meanings(path: str) -> list[str]:
    """What the parts of a dotted name say, from the innermost outwards."""
    return [found for part in reversed(path.split(".")) if (found := meaning(part)) is not None]


def relative(paths: Iterable[str]) -> dict[str, str]:
    """Each dotted name without the parts that all of them begin with, in the order of ``paths``."""
    split = {path: path.split(".") for path in paths}
    first = min(split.values(), default=[])
    shared = 0
    while shared < min((len(parts) - 1 for parts in split.values()), default=0) and all(
        parts[shared] == first[shared] for parts in split.values()
    ):
        shared += 1
    return {path: ".".join(parts[shared:]) for path, parts in split.items()}
