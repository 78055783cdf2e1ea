"""What the value of an option may be, by its name: it means the same in every method and DataModule."""

import math
import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from o2o_lightning.errors import UserError, at_least

SHARES = ("discount", "gae_lambda", "polyak", "expectile", "dropout", "fraction", "share", "offline_share")
NOT_NEGATIVE = (
    "policy_noise", "noise_clip", "exploration_noise", "weight_decay", "entropy", "conservative_weight", "bc_q_weight",
    "mode_weight", "inverse_temperature", "curvature", "clip", "lr", "actor_lr", "critic_lr", "value_lr",
    "temperature_lr", "start", "end", "scale", "normalize_eps", "memory_limit_gb", "eval_every_updates", "warmup_steps",
    "confidence", "tolerance", "eval_every", "device_limit_gb", "exploration_clip",
    "satisfied_weight", "violated_weight", "integral", "proportional",
)  # fmt: skip
COUNTS = (
    "chunk", "env_steps", "utd", "capacity", "epochs", "context", "acting_context", "anneal_updates",
    "decay_env_steps", "collect", "first_round", "patience",
)  # fmt: skip
RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(SHARES, (0, 1)),
    **dict.fromkeys(NOT_NEGATIVE, (0, math.inf)),
    **dict.fromkeys(COUNTS, (1, 2**53)),  # beyond, a count is no longer exact where it meets a float
    **dict.fromkeys(("hidden", "critic_hidden", "value_hidden", "layers", "heads", "width"), (1, 2**20)),
    **dict.fromkeys(("critics", "samples", "num_envs"), (1, 2**16)),  # each takes memory
    **dict.fromkeys(("batch_size", "rollout", "confirmations"), (2, 2**24)),
    **dict.fromkeys(("reward_scale", "reward_shift", "target_entropy", "target_return"), (-1e30, 1e30)),
    **dict.fromkeys(("actor_grad_clip", "max_grad_norm", "std_cap"), (1e-12, math.inf)),
    "eval_episodes": (0, 2**16),
    "eval_seed": (0, 2**32 - 1),
    "seeds": (0, 2**53),
}
OF_COMMANDS = {"episodes": (0, 2**16), "states": (1, 2**24), "seed": (0, 2**32 - 1)}  # that run no phase


def check_settings(part: str, settings: Any) -> None:
    """Refuses, of the options of a dataclass, ``null`` where it is no value, and what :func:`check_ranges` does."""
    for option in fields(settings):
        takes_none = option.default is None or re.search("None|Optional|Any", str(option.type))
        if getattr(settings, option.name) is None and not takes_none:
            raise UserError(f"--{part}.{option.name} null: a value is needed. Leave it out for the default.")
    check_ranges(part, {option.name: getattr(settings, option.name) for option in fields(settings)})


def check_ranges(part: str, options: dict[str, Any]) -> None:
    """Refuses a value that makes no sense, NaN among them, of ``--part.name``, or ``--name`` where there is no part.

    The fields of settings are looked at as well.
    """
    for name, value in options.items():
        if is_dataclass(value):
            check_ranges(f"{part}.{name}", vars(value))
        least, most = (RANGES if part else OF_COMMANDS).get(name, (None, None))
        for number in value if isinstance(value, Sequence) else (value,):
            if isinstance(number, int | float) and least is not None and most is not None:
                option = f"--{part}.{name}".replace("--.", "--")
                at_least(option, number, least)
                if number > most or number == math.inf:
                    raise UserError(f"{option} {number:g}: it must be at most {min(most, 1e30):,}.")
