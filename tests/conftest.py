"""Shared by all tests: one thread, reproducible property tests, a small real dataset, phases that run in seconds."""

from __future__ import annotations

import os
import sys

if "PYTEST_XDIST_WORKER" not in os.environ and not any("gpu" in argument for argument in sys.argv):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # numbers are compared that a GPU would compute otherwise
# A product's last bits depend on where in memory its numbers lie, unless MKL is told otherwise when it is loaded, and
# recorded updates, which are compared to the bit, have theirs at other places.
os.environ.setdefault("MKL_CBWR", "AVX2,STRICT")
os.environ.setdefault("O2O_PRODUCTS", "mkl")  # on every machine the same; tests/test_linear.py has oneDNN's

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from data_files import record_pendulum
from hypothesis import settings
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.loggers import CSVLogger

from o2o_lightning.cli.sweep import LAUNCHED
from o2o_lightning.data.module import OfflineData
from o2o_lightning.methods.o2 import td3
from o2o_lightning.methods.td3_bc import TD3BC
from o2o_lightning.phases.align import Align
from o2o_lightning.phases.base import Phase
from o2o_lightning.phases.offline import Offline
from o2o_lightning.phases.reevaluate import Reevaluate

# a deadline measures the machine's other users; in CI every run draws the same examples
settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")
torch.set_num_threads(1)

PENDULUM_EPISODES, PENDULUM_STEPS = 60, 8
HIDDEN = (16, 16)


@pytest.fixture(autouse=True)
def _launchers_variables() -> Iterable[None]:
    """A run on several devices leaves them set, and the next one in this process would take itself for a child."""
    before = {name: os.environ.get(name) for name in LAUNCHED}
    yield
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


@dataclass
class Run:
    """A phase that has run: what it ended as, and what it left on the disk."""

    module: Any
    trainer: L.Trainer
    checkpoint: Path
    folder: Path
    start: dict[str, torch.Tensor]
    start_moments: dict[str, dict[str, torch.Tensor]]

    def end(self) -> dict[str, torch.Tensor]:
        return state_of(self.module)

    def metrics(self) -> bytes:
        return (self.folder / "metrics.csv").read_bytes()


class Snapshot(Checkpoint):
    """Copies weights and Adam moments just before the first batch; a `Checkpoint`, so Lightning calls it last."""

    def __init__(self) -> None:
        self.state: dict[str, torch.Tensor] = {}
        self.moments: dict[str, dict[str, torch.Tensor]] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.state = state_of(pl_module)
        self.moments = moments_of(trainer.optimizers[0])


def state_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.detach().clone() for key, value in module.state_dict().items()}


def moments_of(optimizer: torch.optim.Optimizer) -> dict[str, dict[str, torch.Tensor]]:
    """Adam's state by parameter name; parameters that were never stepped are absent."""
    return {
        name: {key: value.clone() for key, value in optimizer.state[parameter].items()}
        for group in optimizer.param_groups
        for name, parameter in zip(group["param_names"], group["params"], strict=True)
        if optimizer.state.get(parameter)
    }


@pytest.fixture(scope="session")
def pendulum(tmp_path_factory: pytest.TempPathFactory) -> str:
    """480 transitions of Pendulum-v1 (3 observations, 1 action in ±2) in 60 episodes of 8 steps."""
    return str(record_pendulum(tmp_path_factory.mktemp("data") / "pendulum.hdf5", PENDULUM_EPISODES, PENDULUM_STEPS))


Fit = Callable[..., Run]


@pytest.fixture(scope="session")
def fit(tmp_path_factory: pytest.TempPathFactory) -> Fit:
    """``fit(phase, data, steps=…, seed=…, callbacks=…)`` runs one phase with Lightning's Trainer, without the CLI.

    ``phase`` and ``data`` may be functions, which are called under the seed.
    """

    def run(
        phase: Phase | Callable[[], Phase],
        data: OfflineData | Callable[[], OfflineData],
        steps: int = -1,
        seed: int = 0,
        callbacks: Iterable[Callback] = (),
        log_every: int = 1,
    ) -> Run:
        folder = tmp_path_factory.mktemp("run")
        L.seed_everything(seed, verbose=False)
        module = phase if isinstance(phase, Phase) else phase()
        datamodule = data if isinstance(data, OfflineData) else data()
        snapshot = Snapshot()
        trainer = L.Trainer(
            accelerator="cpu",
            max_epochs=1,
            max_steps=steps,
            logger=CSVLogger(folder, name="", version="", flush_logs_every_n_steps=1),
            log_every_n_steps=log_every,
            callbacks=[*callbacks, snapshot],
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, datamodule=datamodule)
        checkpoint = folder / "last.ckpt"
        trainer.save_checkpoint(checkpoint)
        return Run(module, trainer, checkpoint, folder, snapshot.state, snapshot.moments)

    return run


@pytest.fixture(scope="session")
def chain(fit: Fit, pendulum: str) -> dict[str, Run]:
    """TD3+BC, re-evaluation and alignment on Pendulum, 24 updates each, every phase from the one before."""
    data = lambda: OfflineData(dataset=pendulum, batch_size=32, eval_episodes=1)  # noqa: E731
    runs = {"offline": fit(lambda: Offline(TD3BC(hidden=HIDDEN)), data, 24)}
    after = lambda phase: str(runs[phase].checkpoint)  # noqa: E731
    runs["reevaluate"] = fit(lambda: Reevaluate(td3.Reevaluate(hidden=HIDDEN), after("offline")), data, 24)
    runs["align"] = fit(lambda: Align(td3.Align(), after("reevaluate")), data, 24)
    return runs


@pytest.fixture
def o2o(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """``o2o("fit", "--phase", …)`` runs the command line in this process and returns its exit code."""
    from o2o_lightning.cli.main import main

    monkeypatch.delenv("O2O_TRACEBACK", raising=False)
    return lambda *argv: main([str(token) for token in argv])
