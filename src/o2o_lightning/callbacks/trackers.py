"""Weights & Biases and MLflow: one run for all phases of a run directory, in which each phase is a namespace."""

import re
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import MLFlowLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from o2o_lightning.checkpoint.io import write_atomically

PROJECT = "o2o-lightning"


class WandbRun(WandbLogger):
    """Lightning's WandbLogger: ``online/eval/score`` over ``online/step``, in the run that the phases before began.

    Args:
        save_dir: the run directory, whose ``wandb/`` tells of that run.
        phase: the namespace.
        project, kwargs: as of Lightning's own.
    """

    LOGGER_JOIN_CHAR = "/"

    def __init__(self, save_dir: str, phase: str, project: str = PROJECT, **kwargs: Any) -> None:
        super().__init__(save_dir=save_dir, prefix=phase, project=project, **kwargs)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The run, begun or gone on with at the first call."""
        if self._experiment is None:
            import wandb

            folder = Path(str(self._save_dir)) / "wandb"
            ids = [
                found[1]
                for path in sorted(folder.glob("*run-*"))
                if (found := re.search(r"run-[\d_]+-(.+)", path.name))
            ]
            known = self._id or (ids[-1] if ids else None)
            if wandb.run is None or wandb.run.id != known:
                wandb.finish()  # another run directory's
                folder.mkdir(parents=True, exist_ok=True)
                given = {name: value for name, value in self._wandb_init.items() if value is not None}
                given |= {"id": known, "mode": "offline" if self._offline else None}
                self._experiment = wandb.init(**given)
            else:
                self._experiment = wandb.run
            self._id = self._experiment.id
            self._experiment.define_metric(f"{self._prefix}/step")
            self._experiment.define_metric(f"{self._prefix}/*", step_metric=f"{self._prefix}/step")
        return self._experiment

    @rank_zero_only
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        named = {f"{self._prefix}/{name}": value for name, value in {**metrics, "step": step or 0}.items()}
        self.experiment.log(named)

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        super().log_hyperparams({self._prefix: dict(params)})


class MlflowRun(MLFlowLogger):
    """Lightning's MLFlowLogger: ``online/eval/score``, in the run that the phases before began.

    Args:
        save_dir: the run directory, which remembers that run's id.
        phase: the namespace.
        experiment_name, tracking_uri, kwargs: as of Lightning's own; by default where MLflow itself keeps its runs.
    """

    LOGGER_JOIN_CHAR = "/"

    def __init__(
        self,
        save_dir: str,
        phase: str,
        experiment_name: str = PROJECT,
        tracking_uri: str | None = None,
        **kwargs: Any,
    ) -> None:
        if tracking_uri is None:
            from mlflow.tracking import get_tracking_uri

            tracking_uri = get_tracking_uri()
        named: dict[str, Any] = {"experiment_name": experiment_name, "tracking_uri": tracking_uri, "prefix": phase}
        super().__init__(**{**named, "run_name": Path(save_dir).name, **kwargs})
        self.memory = Path(save_dir) / "mlflow-run"

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """MLflow's client, the run begun or gone on with at the first call."""
        if not self._initialized:
            if self._run_id is None and self.memory.exists():
                self._run_id = self.memory.read_text().strip()
            client = MLFlowLogger.experiment.fget(self)  # type: ignore[attr-defined]
            self.memory.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.memory, str(self._run_id).encode())
            return client
        return self._mlflow_client

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        super().log_hyperparams({self._prefix: dict(params)})
