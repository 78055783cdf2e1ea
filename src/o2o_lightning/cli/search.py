"""Sweeps that search: what a job was worth goes back to Hydra's sweeper, which chooses the next ones by it."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hydra.core.override_parser.types import Override, Transformer

from o2o_lightning.cli.command import Command, hydra_key
from o2o_lightning.errors import UserError
from o2o_lightning.report.groups import MEASURES, Group
from o2o_lightning.report.runs import find

KEY = "metric"
MINIMISED = ("drop", "regret")


def measure_of(command: Command, own: Sequence[str]) -> str | None:
    """Takes ``metric=…`` out of a sweep's command; None where its jobs are a grid, and none is asked for.

    Raises:
        UserError: no such measure, or what it would choose by is not said on the line.
    """
    typed = [token.partition("=")[2] for token in command.overrides if hydra_key(token) == KEY]
    command.overrides = [token for token in command.overrides if hydra_key(token) != KEY]
    sweeper = next((token.partition("=")[2] for token in own if token.startswith("hydra/sweeper=")), "basic")
    if typed and typed[-1] not in MEASURES:
        raise UserError(f"{KEY}={typed[-1]}: choose one of {', '.join(MEASURES)}.")
    if sweeper == "basic":
        if typed:
            raise UserError(f"{KEY}={typed[-1]}: a grid chooses by none. Add hydra/sweeper=optuna, or leave it out.")
        return None
    if hidden := [token for token in own if hydra_key(token).startswith(("hydra.sweeper.params", "hydra.sweeper.se"))]:
        raise UserError(
            f"{hidden[0]}: write what is searched as `key=interval(a,b)` or `key=a,b`, so that jobs have names."
        )
    return typed[-1] if typed else "final"


def settings(measure: str, own: Iterable[str]) -> list[str]:
    """How Optuna's sweeper is set unless it is typed: one job after the other, and the same ones when given again."""
    if "hydra/sweeper=optuna" not in own:
        return []
    seed = [] if "hydra/sweeper/sampler=grid" in own else ["hydra.sweeper.sampler.seed=0"]
    direction = f"hydra.sweeper.direction={'minimize' if measure in MINIMISED else 'maximize'}"
    return [direction, "hydra.sweeper.n_jobs=1", "hydra.sweeper.max_failure_rate=1.0", *seed]


def example(parsed: Sequence[Override]) -> list[str]:
    """The Hydra tokens of a job that a search may choose, by the first value of everything."""
    first = {item.get_key_element(): _first(item) for item in parsed if item.is_sweep_override()}
    fixed = [str(item.input_line) for item in parsed if not item.is_sweep_override()]
    return [*(f"{key}={value}" for key, value in first.items()), *fixed]


def _first(item: Override) -> Any:
    value: Any = item.value()
    return value.start if item.is_interval_sweep() else next(iter(item.sweep_iterator(transformer=Transformer.encode)))


def worth(folder: Path, measure: str) -> float | None:
    """The measure of what has run in ``folder``, the mean of its seeds; None where nothing has finished."""
    try:
        runs, _ = find([folder])
    except UserError:
        return None
    value = float(np.mean(Group("", runs).column(measure)))
    return value if np.isfinite(value) else None


def ranked(sweep: Path, measure: str) -> tuple[list[tuple[float, Path]], list[Path]]:
    """The folders of a search with what they were worth, the best first, and those that were worth nothing."""
    folders = [Path(str(log).removesuffix(".log")) for log in sorted(sweep.glob("*.log"))]
    found = [(value, folder) for folder in folders if (value := worth(folder, measure)) is not None]
    best_first = sorted(found, key=lambda pair: pair[0], reverse=measure not in MINIMISED)
    worthless = {*folders} - {folder for _, folder in found}
    return best_first, [folder for folder in folders if folder in worthless]
