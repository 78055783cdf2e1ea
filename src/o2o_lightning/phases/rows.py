"""What a phase says of itself while it runs: rows of metrics to every logger, and values to every callback."""

from typing import ClassVar

import lightning as L
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from o2o_lightning.callbacks.sections import sectioned
from o2o_lightning.ranks import Ranks


class Rows(L.LightningModule):
    """A module whose metrics are rows on its own clock, not Lightning's: base of all phases.

    Attributes:
        display: the last value of each metric.
        fresh: names that have had a new value since the last chunk's end, with their sections and without.
    """

    clock_name: ClassVar[str]
    updates: int
    env_steps: int
    ranks: Ranks

    def __init__(self) -> None:
        super().__init__()
        self.display: dict[str, float] = {}
        self.fresh: set[str] = set()

    def log_means(self, metrics: dict[str, Tensor]) -> None:
        """One row of the means of ``metrics`` over their elements and all processes."""
        row = {name: float(value.detach().float().mean()) for name, value in metrics.items()}
        self.log_now(self.ranks.mean_row(row))

    def log_now(self, metrics: dict[str, float], moment: tuple[int, int] | None = None) -> None:
        """One row to every logger, on the phase's own clock; both clocks, of now or of ``moment``, are columns.

        Names have their sections but in a CSV file; Lightning's own callbacks can monitor either.
        """
        updates, env_steps = moment or (self.updates, self.env_steps)
        row = {"updates": updates, **({"env_steps": env_steps} if env_steps else {}), **metrics}
        self.display.update(metrics)
        self.show(metrics)
        in_sections = {sectioned(name): value for name, value in row.items()}
        for logger in self.trainer.loggers:
            named = row if isinstance(logger, CSVLogger) else in_sections
            logger.log_metrics(named, step=env_steps if self.clock_name == "env_steps" else updates)

    def show(self, metrics: dict[str, float]) -> None:
        """Values that callbacks can monitor, by name, and by name with its section."""
        both = {**metrics, **{sectioned(name): value for name, value in metrics.items()}}
        self.fresh.update(both)
        self.trainer.callback_metrics.update({name: torch.tensor(value) for name, value in both.items()})
