"""A Trainer for scripts and notebooks that leaves what ``o2o fit`` leaves."""

from pathlib import Path
from typing import Any

import lightning as L
import yaml

from o2o_lightning.callbacks.checkpoint import PhaseCheckpoint
from o2o_lightning.callbacks.metrics import MetricsFile
from o2o_lightning.callbacks.progress import PhaseProgress
from o2o_lightning.callbacks.run_directory import RunDirectory
from o2o_lightning.checkpoint.io import AtomicCheckpointIO
from o2o_lightning.data.module import OfflineData
from o2o_lightning.phases.base import Phase


def run_trainer(run_dir: str | Path, phase: Phase, data: OfflineData, **options: Any) -> L.Trainer:
    """A Trainer whose run is ``RUN_DIR/PHASE``: metrics, checkpoints, configuration, summary; and the progress.

    Args:
        run_dir: directory of all phases of a run, as ``o2o report`` reads it.
        phase, data: what it is going to fit.
        options: of :class:`lightning.Trainer`, such as ``max_steps``; ``callbacks`` and ``logger`` are added to ours.
    """
    folder = Path(run_dir) / phase.phase
    parts: dict[str, Any] = {"model": phase, "data": data}
    config = {
        part: {"class_path": f"{type(it).__module__}.{type(it).__qualname__}", "init_args": dict(it.hparams)}
        for part, it in parts.items()
    }
    theirs, loggers = options.pop("callbacks", []), options.pop("logger", [])
    return L.Trainer(
        max_epochs=1,
        logger=[MetricsFile(str(run_dir), phase.phase), *(loggers if isinstance(loggers, list) else [loggers])],
        callbacks=[
            *(theirs if isinstance(theirs, list) else [theirs]),
            PhaseProgress(),
            PhaseCheckpoint(str(folder / "checkpoints")),
            RunDirectory(run_dir, yaml.safe_dump(config, sort_keys=False)),
        ],
        plugins=[AtomicCheckpointIO()],
        enable_model_summary=False,
        **options,
    )
