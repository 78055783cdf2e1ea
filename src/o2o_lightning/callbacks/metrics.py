"""``metrics.csv``: the rows of a phase, in a file that a resumed run goes on writing."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from o2o_lightning.checkpoint.io import sync, write_atomically, writing
from o2o_lightning.errors import UserError


class MetricsFile(CSVLogger):
    """Lightning's CSVLogger, made to survive: it deletes nothing, and is never without its rows for a moment.

    Lightning's own deletes an existing file, and a new column makes it empty the file before rewriting it. Here each
    row is appended at once, and a new column rewrites the file beside itself.

    Args:
        save_dir, name: the file is ``save_dir/name/metrics.csv``.
    """

    def __init__(self, save_dir: str, name: str = "") -> None:
        super().__init__(save_dir=save_dir, name=name, version="")
        self.path = Path(self.log_dir) / "metrics.csv"
        self.columns: list[str] = []
        self.rows = 0
        self._ours = self._begun = False

    @property
    def experiment(self) -> Any:
        return self

    def keep(self, rows: int) -> None:
        """The run goes on from where the file had so many rows: later ones, and half a line, are dropped."""
        self.rows, self._ours = rows, True

    def begin(self) -> None:
        """Drops what is not kept; not when it is made, which Lightning does before it reads the checkpoint.

        Raises:
            UserError: there is a file, and not of this run.
        """
        if self._begun:
            return
        if self.path.exists() and not self._ours:
            raise UserError(f"{self.path}: it exists, and nothing is written over. Move it away, or log elsewhere.")
        self._begun = True
        found = self._read()
        self.columns = sorted({name for row in found for name, value in row.items() if value})
        self.rows = len(found)
        if found:
            self._rewrite(found)
        else:
            self.path.unlink(missing_ok=True)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        self.begin()
        row = {name: value.item() if isinstance(value, Tensor) else value for name, value in metrics.items()}
        row["step"] = step or 0
        if row.keys() <= {*self.columns}:
            with writing(self.path), self.path.open("a", newline="") as file:
                file.write(self._text([row]))
        else:
            found = self._read()
            self.columns = sorted({*self.columns, *row})
            self._rewrite([*found, row])
        self.rows += 1

    @rank_zero_only
    def log_hyperparams(self, params: Any = None) -> None:
        """Nothing: ``config.yaml`` beside the file has them."""

    def save(self) -> None:
        """Nothing: each row is in the file already."""

    def sync(self) -> None:
        """The rows so far reach the disk."""
        if self.path.exists():
            sync(self.path)

    def _read(self) -> list[dict[str, Any]]:
        if self.rows == 0 or not self.path.exists():
            return []
        with self.path.open(newline="") as file:
            return [row for _, row in zip(range(self.rows), csv.DictReader(file), strict=False)]

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        write_atomically(self.path, self._text(rows, header=True).encode())

    def _text(self, rows: list[dict[str, Any]], header: bool = False) -> str:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.columns, extrasaction="ignore")
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()


def metrics_files(trainer: L.Trainer) -> list[MetricsFile]:
    """Those of a Trainer's loggers that are files of ours."""
    return [logger for logger in trainer.loggers if isinstance(logger, MetricsFile)]
