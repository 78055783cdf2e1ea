"""D4RL's normalised score.

The reference returns are those of D4RL's ``d4rl/infos.py`` (Fu, Kumar, Nachum, Tucker, Levine, "D4RL: Datasets for
Deep Data-Driven Reinforcement Learning", 2020; https://github.com/Farama-Foundation/D4RL, Apache License 2.0): the
mean return of uniformly random actions and of an expert. All datasets of an environment share them.
"""

from __future__ import annotations

import re
from typing import Final, TypeVar

Reference = tuple[float, float]
Number = TypeVar("Number", bound="float | None")

_GYM: Final[dict[str, Reference]] = {
    "halfcheetah": (-280.178953, 12135.0),
    "hopper": (-20.272305, 3234.3),
    "walker2d": (1.629008, 4592.3),
    "ant": (-325.6, 3879.7),
}
_ADROIT: Final[dict[str, Reference]] = {
    "pen": (96.262799, 3076.8331017826877),
    "hammer": (-274.856578, 12794.134825156867),
    "door": (-56.512833, 2880.5693087298737),
    "relocate": (-6.425911, 4233.877797728884),
}
_MAZE2D: Final[dict[str, Reference]] = {
    "maze2d-open-v0": (0.01, 20.66),
    "maze2d-umaze-v1": (23.85, 161.86),
    "maze2d-medium-v1": (13.13, 277.39),
    "maze2d-large-v1": (6.7, 273.99),
    "maze2d-open-dense-v0": (11.17817, 27.166538620695782),
    "maze2d-umaze-dense-v1": (68.537689, 193.66285642381482),
    "maze2d-medium-dense-v1": (44.264742, 297.4552547777125),
    "maze2d-large-dense-v1": (30.569041, 303.4857382709002),
}
_ANTMAZE: Final[Reference] = (0.0, 1.0)
_KITCHEN: Final[Reference] = (0.0, 4.0)

GYM_LEVELS: Final = ("random", "medium", "expert", "medium-replay", "full-replay", "medium-expert")
ANTMAZES: Final = ("umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play", "large-diverse")

REFERENCE_SCORES: Final[dict[str, Reference]] = {
    **{
        f"{family}-{level}-{version}": reference
        for family, reference in _GYM.items()
        for level in GYM_LEVELS
        for version in ("v0", "v1", "v2")
    },
    **{f"antmaze-{maze}-{version}": _ANTMAZE for maze in ANTMAZES for version in ("v0", "v2")},
    **_MAZE2D,
    **{
        f"{family}-{level}-{version}": reference
        for family, reference in _ADROIT.items()
        for level in ("human", "cloned", "expert")
        for version in ("v0", "v1")
    },
    **{f"kitchen-{level}-v0": _KITCHEN for level in ("complete", "partial", "mixed")},
}

# PointMaze has no entry: D4RL's maze2d has a fixed hidden goal, PointMaze a random one, so returns do not compare.
_ENVIRONMENTS: Final[tuple[tuple[str, Reference], ...]] = (
    (r"HalfCheetah-v[2-5]", _GYM["halfcheetah"]),
    (r"Hopper-v[2-5]", _GYM["hopper"]),
    (r"Walker2d-v[2-5]", _GYM["walker2d"]),
    (r"Ant-v[2-5]", _GYM["ant"]),
    (r"AdroitHandPen-v\d", _ADROIT["pen"]),
    (r"AdroitHandHammer-v\d", _ADROIT["hammer"]),
    (r"AdroitHandDoor-v\d", _ADROIT["door"]),
    (r"AdroitHandRelocate-v\d", _ADROIT["relocate"]),
    (r"AntMaze_(UMaze|Medium|Large)(_Diverse_GR?)?-v\d", _ANTMAZE),
    (r"FrankaKitchen-v\d", _KITCHEN),
)


def reference_scores(name_or_env_id: str) -> Reference | None:
    """``(random, expert)`` returns of a D4RL dataset name (``d4rl:`` allowed) or a Gymnasium id; None if unknown."""
    name = name_or_env_id.removeprefix("d4rl:").split("#")[0]
    if name in REFERENCE_SCORES:
        return REFERENCE_SCORES[name]
    return next((reference for pattern, reference in _ENVIRONMENTS if re.fullmatch(pattern, name)), None)


def normalized_score(return_: float, reference: Reference) -> float:
    r"""Score in percent, :math:`100\,(R - R_{random}) / (R_{expert} - R_{random})`, of a mean undiscounted return."""
    low, high = reference
    return 100.0 * ((return_ - low) / (high - low))


def score_or_return(score: float | None, return_: Number) -> float | Number:
    """What policies are compared by, shown and summed up: the score, or the return where no reference exists."""
    return return_ if score is None else score
