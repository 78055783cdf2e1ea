"""Seeds of the run's random streams: each its own, in each process, all from ``--seed_everything``."""

import os


def run_seed() -> int:
    """What ``--seed_everything`` was, as Lightning keeps it; 0 where nothing was seeded."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


def noise_seed(rank: int) -> int:
    """Of the noise inside updates."""
    return run_seed() * 1009 + rank + 1


def rows_seed(rank: int) -> int:
    """Of the rows that batches draw."""
    return run_seed() * 1013 + rank + 7


def environment_seed(rank: int, number: int = 0) -> int:
    """Of a process's training environment ``number``, and of the exploration in its first."""
    return run_seed() * 1019 + rank + 7919 * number


def recording_seed(seed: int) -> int:
    """Of the environment and noise of a recording with ``--seed`` ``seed``: not the training environment's."""
    return seed * 1021 + 17


def restart_seed(seed: int, steps: int) -> int:
    """Of the episode that begins when an environment, reset with ``seed``, could not be saved after ``steps`` steps."""
    return seed + 104_729 * (steps + 1)
