"""What a training run costs beside its updates: Lightning, data, the environment."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import cases
import gymnasium as gym
import lightning as L
import measure
import numpy as np
import textbook
import torch
from lightning.pytorch.callbacks import Checkpoint
from rich.console import Console
from tensordict import TensorDictBase
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer

from o2o_lightning.callbacks.metrics import MetricsFile
from o2o_lightning.callbacks.progress import PhaseProgress
from o2o_lightning.data.online import OnlineData
from o2o_lightning.phases.online import Online

# ---- Lightning ---------------------------------------------------------------------------------------------------


class WithoutEnvironment(OnlineData):
    """Online data whose environment stands still, so that batches and Lightning are all that is left to time."""

    seconds = 0.0

    def step(self, explore: Any) -> None:
        pass

    def updates_due(self, env_steps: int) -> int:
        return 1

    def numbers(self, shape: Any = None) -> Any:
        start = time.process_time()
        numbers = super().numbers(shape)
        self.seconds += time.process_time() - start
        return numbers

    def batches(self, numbers: Any) -> Iterator[TensorDictBase]:
        start = time.process_time()
        batches = [*super().batches(numbers)]
        self.seconds += time.process_time() - start
        yield from batches

    def fill(self) -> None:
        assert self.store is not None
        self.buffer.extend(self.store.gather(torch.arange(20_000)))


class Alternating(Checkpoint):
    """Times chunks of a running fit, and after each the same updates on a batch at hand without Lightning.

    A ``Checkpoint``, so that Lightning calls it last: all else that happens between two chunks is inside.
    """

    def __init__(self) -> None:
        self.times: dict[str, list[float]] = {"fit": [], "bare": [], "data": []}
        self.bare: cases.Bare | None = None
        self.mark = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        batch = next(data.batches(data.numbers()))
        data.seconds = 0.0
        self.bare = cases.Bare(pl_module.method, _always(batch), optimizer=trainer.optimizers[0])
        self.mark = time.process_time()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *unused: Any) -> None:
        assert self.bare is not None
        end, updates = time.process_time(), pl_module.data.chunk
        self.times["fit"].append((end - self.mark) / updates * 1e3)
        self.bare.updates = pl_module.updates
        start = time.process_time()
        for _ in range(updates):
            self.bare()
        self.times["bare"].append((time.process_time() - start) / updates * 1e3)
        self.times["data"].append(pl_module.data.seconds / updates * 1e3)
        pl_module.data.seconds = 0.0
        self.mark = time.process_time()


def _always(batch: TensorDictBase) -> Iterator[TensorDictBase]:
    while True:
        yield batch


FITS: dict[str, Callable[[], Any]] = {"SAC online": cases.online_sac, "TD3 online": cases.online_td3}


def lightning_overhead(name: str, chunks: int, log_every: int = 100) -> dict[str, float]:
    """Lightning, data, Rich bar and CSV rows over the bare updates, as a share of these."""
    module = Online(FITS[name]())
    module.updates = 1
    module.configure_callbacks = lambda: []  # no evaluation, nor the reference that follows it
    data = WithoutEnvironment(dataset=cases.DATASET, env_steps=chunks * cases.CHUNK, eval_every=10**9)
    data.setup("fit")
    data.normalizer = module.normalizer = data.fit_normalizer()
    data.fill()
    progress, timer = PhaseProgress(), Alternating()
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
        progress._console = Console(file=nowhere, force_terminal=True)
        L.Trainer(
            accelerator="cpu", max_epochs=1, max_steps=-1, logger=MetricsFile(folder, "online"),
            log_every_n_steps=log_every, callbacks=[progress, timer], enable_model_summary=False,
            enable_checkpointing=True,
        ).fit(module, datamodule=data)  # fmt: skip
    fit, bare, data_time = (timer.times[name][2:] for name in ("fit", "bare", "data"))
    # the mean over all chunks has the log rows in, which fall into one chunk of some
    return {
        "overhead": sum(fit) / sum(bare) - 1.0,
        "overhead_median": measure.ratio(fit, bare) - 1.0,
        "data": sum(data_time) / sum(bare),
        "bare_ms": sum(bare) / len(bare),
    }


# ---- data --------------------------------------------------------------------------------------------------------


def data_costs(rounds: int) -> dict[str, dict[str, float]]:
    """Microseconds a batch of 256, from the store to what a network takes."""
    offline, online = cases.offline_data(), cases.online_data()
    rows = cases.columns(offline)
    half = cases.BATCH // 2
    simple = textbook.Mixed(textbook.Replay(rows, half), textbook.Replay(rows, half))
    library = TensorDictReplayBuffer(storage=LazyTensorStorage(20_000), batch_size=cases.BATCH)
    assert offline.store is not None
    library.extend(offline.store.gather(torch.arange(20_000)))
    chunks, live = cases.chunked(offline), cases.live(online)
    times = measure.interleaved(
        {
            f"offline, chunk of {cases.CHUNK}": lambda: next(chunks),
            "online, half and half": lambda: next(live),
            "textbook, half and half, normalised before": simple.sample,
            "TensorDictReplayBuffer.sample, raw": library.sample,
        },
        rounds,
        4 * cases.CHUNK,
    )
    return {
        name: {"median_us": measure.summary(found)["median_ms"] * 1e3, "min_us": min(found) * 1e3}
        for name, found in times.items()
    }


# ---- environment -------------------------------------------------------------------------------------------------


def environment_costs(rounds: int) -> dict[str, dict[str, float]]:
    """Microseconds an environment step: bare, with a numpy actor, and as the online phase makes it."""
    found: dict[str, dict[str, float]] = {}
    for name, method in FITS.items():
        module, data = Online(method()), cases.online_data()
        assert data.interaction is not None and data.env_id is not None
        trainer = SimpleNamespace(datamodule=data)
        module.trainer, module.normalizer, module.updates = trainer, data.normalizer, 1  # type: ignore[assignment]
        explore, interaction = module.explore, data.interaction
        bare = _BareLoop(data.env_id, module.method.actor)
        times = measure.interleaved(
            {
                "env.step and numpy actor": bare.step,
                "online step": lambda interaction=interaction, explore=explore: interaction.step(explore),
            },
            rounds,
            100,
        )
        found[name] = {
            "bare_us": measure.summary(times["env.step and numpy actor"])["median_ms"] * 1e3,
            "online_us": measure.summary(times["online step"])["median_ms"] * 1e3,
            "ratio": measure.ratio(times["online step"], times["env.step and numpy actor"]),
        }
        interaction.env.close()
    return found


class _BareLoop:
    """The least that acting needs: Gymnasium's environment as it makes it, and the actor's weights as arrays."""

    def __init__(self, env_id: str, actor: Any) -> None:
        self.env = gym.make(env_id, disable_env_checker=True)
        self.weights = [(layer.weight.detach().numpy().T, layer.bias.detach().numpy()) for layer in actor.body.linears]
        self.size = cases.A
        self.observation = self.env.reset(seed=0)[0].astype(np.float32)

    def step(self) -> None:
        x = self.observation
        for weight, bias in self.weights[:-1]:
            x = np.maximum(x @ weight + bias, 0.0)
        weight, bias = self.weights[-1]
        action = np.tanh((x @ weight + bias)[: self.size])
        observation, _, terminated, truncated, _ = self.env.step(action)
        self.observation = observation.astype(np.float32)
        if terminated or truncated:
            self.observation = self.env.reset()[0].astype(np.float32)
