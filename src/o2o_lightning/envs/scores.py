"""D4RL's normalised score.

The reference returns are those of D4RL's ``d4rl/infos.py`` (Fu, Kumar, Nachum, Tucker, Levine, "D4RL: Datasets for
Deep Data-Driven Reinforcement Learning", 2020; https://github.com/Farama-Foundation/D4RL, Apache License 2.0): the
mean return of uniformly random actions and of an expert. All datasets of an environment share them.
"""

import re
from typing import Final, TypeVar

Reference = tuple[float, float]
Number = TypeVar("Number", bound="float | None")

GYM_LEVELS: Final = ("random", "medium", "expert", "medium-replay", "full-replay", "medium-expert")
ANTMAZES: Final = ("umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play", "large-diverse")

_GYM = f"({'|'.join(GYM_LEVELS)})-v[012]"
_HAND = "(human|cloned|expert)-v[01]"
# By a dataset's name and, where it is the same task, an environment's id. Not the same are PointMaze and Gymnasium-
# Robotics' AntMaze (start and goal are drawn over the maze), FrankaKitchen (other observations and tasks) and
# AdroitHandPen (200 steps instead of 100): returns do not compare.
_REFERENCES: Final[dict[str, Reference]] = {
    rf"halfcheetah-{_GYM}|HalfCheetah-v[2-5]": (-280.178953, 12135.0),
    rf"hopper-{_GYM}|Hopper-v[2-5]": (-20.272305, 3234.3),
    rf"walker2d-{_GYM}|Walker2d-v[2-5]": (1.629008, 4592.3),
    rf"ant-{_GYM}|Ant-v[2-5]": (-325.6, 3879.7),
    rf"pen-{_HAND}": (96.262799, 3076.8331017826877),
    rf"hammer-{_HAND}|AdroitHandHammer-v\d": (-274.856578, 12794.134825156867),
    rf"door-{_HAND}|AdroitHandDoor-v\d": (-56.512833, 2880.5693087298737),
    rf"relocate-{_HAND}|AdroitHandRelocate-v\d": (-6.425911, 4233.877797728884),
    rf"antmaze-({'|'.join(ANTMAZES)})-v[02]": (0.0, 1.0),
    r"kitchen-(complete|partial|mixed)-v0": (0.0, 4.0),
    "maze2d-open-v0": (0.01, 20.66),
    "maze2d-umaze-v1": (23.85, 161.86),
    "maze2d-medium-v1": (13.13, 277.39),
    "maze2d-large-v1": (6.7, 273.99),
    "maze2d-open-dense-v0": (11.17817, 27.166538620695782),
    "maze2d-umaze-dense-v1": (68.537689, 193.66285642381482),
    "maze2d-medium-dense-v1": (44.264742, 297.4552547777125),
    "maze2d-large-dense-v1": (30.569041, 303.4857382709002),
}


def reference_scores(name_or_env_id: str) -> Reference | None:
    """``(random, expert)`` returns of a D4RL dataset name (``d4rl:`` allowed) or a Gymnasium id; None if unknown."""
    name = name_or_env_id.removeprefix("d4rl:").split("#")[0]
    return next((reference for pattern, reference in _REFERENCES.items() if re.fullmatch(pattern, name)), None)


def normalized_score(return_: float, reference: Reference) -> float:
    r"""Score in percent, :math:`100\,(R - R_{random}) / (R_{expert} - R_{random})`, of a mean undiscounted return."""
    low, high = reference
    return 100.0 * ((return_ - low) / (high - low))


def score_or_return(score: float | None, return_: Number) -> float | Number:
    """What policies are compared by, shown and summed up: the score, or the return where no reference exists."""
    return return_ if score is None else score
