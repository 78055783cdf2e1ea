"""``metrics.csv``: the rows of a phase, in a file that a resumed run goes on writing."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from o2o_lightning.checkpoint.io import cannot_write, write_atomically
from o2o_lightning.errors import UserError

NAME = "metrics.csv"


class MetricsFile(CSVLogger):
    """Lightning's CSVLogger, made to survive: it deletes nothing, and is never without its rows for a moment.

    Lightning's own deletes an existing file, and a new column makes it empty the file before rewriting it.

    Args:
        save_dir, name: the file is ``save_dir/name/metrics.csv``.
    """

    def __init__(self, save_dir: str, name: str = "") -> None:
        super().__init__(save_dir=save_dir, name=name, version="", flush_logs_every_n_steps=1)

    @property
    def experiment(self) -> Any:
        if self._experiment is None:
            self._experiment = _Rows(Path(self.log_dir))
        return self._experiment

    @property
    def rows(self) -> int:
        """How many rows the file has."""
        return int(self.experiment.count)

    def keep(self, rows: int) -> None:
        """The run goes on from where the file had so many rows: later ones, and half a line, are dropped."""
        self.experiment.count, self.experiment.ours = rows, True

    def begin(self) -> None:
        """Drops what is not kept.

        Raises:
            UserError: there is a file, and not of this run.
        """
        self.experiment.begin()


class _Rows(ExperimentWriter):
    """Appends rows; a new column rewrites the file beside itself."""

    def __init__(self, folder: Path) -> None:
        self.log_dir = str(folder)
        self.hparams: dict[str, Any] = {}
        self.path = folder / NAME
        self.metrics: list[dict[str, float]] = []
        self.metrics_keys: list[str] = []
        self.count = 0
        self.ours = False
        self._begun = False

    def save(self) -> None:
        pending, self.metrics = self.metrics, []
        if not pending:
            return
        self.begin()
        new = set().union(*pending) - set(self.metrics_keys)
        self.count += len(pending)
        if new:
            _, found = _read(self.path, self.count)
            self.metrics_keys = sorted({*self.metrics_keys, *new})
            self._rewrite([*found, *pending])
            return
        try:
            with self.path.open("a", newline="") as file:
                file.write(self._text(pending))
                file.flush()
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def sync(self) -> None:
        """The rows so far reach the disk."""
        if self.path.exists():
            descriptor = os.open(self.path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def begin(self) -> None:
        # not when it is made: Lightning does so before it reads the checkpoint to go on from
        if self._begun:
            return
        if self.path.exists() and not self.ours:
            raise UserError(f"{self.path}: it exists, and nothing is written over. Move it away, or log elsewhere.")
        self._begun = True
        self.metrics_keys, found = _read(self.path, self.count)
        self.count = len(found)
        if found:
            self._rewrite(found)
        else:
            self.path.unlink(missing_ok=True)

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        write_atomically(self.path, self._text(rows, header=True).encode())

    def _text(self, rows: list[dict[str, Any]], header: bool = False) -> str:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.metrics_keys)
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()


def _read(path: Path, rows: int) -> tuple[list[str], list[dict[str, Any]]]:
    """Columns and the first ``rows`` rows; the columns of which nothing is left are left out."""
    if rows == 0 or not path.exists():
        return [], []
    with path.open(newline="") as file:
        found = [row for _, row in zip(range(rows), csv.DictReader(file), strict=False)]
    used = sorted({name for row in found for name, value in row.items() if value})
    return used, [{name: row[name] for name in used} for row in found]
