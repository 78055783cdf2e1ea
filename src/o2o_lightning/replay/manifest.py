"""What is known of a dataset once it is in the store: provenance, counts and returns."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Manifest:
    """Facts of a dataset, as JSON primitives.

    ``td_transitions`` counts the rows with a known successor. Returns (undiscounted, raw rewards) and lengths are over
    complete episodes, and None where there are none. ``action_low``/``action_high`` are the environment's own bounds.
    """

    source: str
    sha256: str
    env_id: str | None
    transitions: int
    td_transitions: int
    episodes: int
    complete_episodes: int
    return_mean: float | None
    return_std: float | None
    return_min: float | None
    return_max: float | None
    length_mean: float | None
    terminated: int
    truncated: int
    observation_dim: int
    action_dim: int
    action_low: list[float] | None
    action_high: list[float] | None
    memmapped: bool
    versions: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """JSON primitives only."""
        return asdict(self)
