"""Rows of a new dataset: rollouts of a policy in files that a killed process's successor goes on with, or a replay."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from o2o_lightning.checkpoint import inert
from o2o_lightning.checkpoint.io import save_atomically
from o2o_lightning.envs.make import UnitAction, native_actions
from o2o_lightning.envs.snapshot import pack, unpack
from o2o_lightning.errors import refusing
from o2o_lightning.recording.behaviour import LOG_PROB, Behaviour
from o2o_lightning.recording.writer import Block
from o2o_lightning.replay.interaction import Interaction
from o2o_lightning.replay.ring import Ring

CHUNK_ROWS = 4096  # environment steps that a kill can cost


class Rollouts:
    """Rollouts of ``behaviour``, one environment, episode after episode.

    Each chunk is a file in ``folder`` of rows and of what the next chunk starts from (environment, noise): the chunks
    are the same whether one process makes them or many, and those that are there already are kept.
    """

    def __init__(self, folder: Path, make: Callable[[], UnitAction], behaviour: Behaviour, seed: int) -> None:
        self.folder, self.make, self.behaviour = folder, make, behaviour
        self.seed = seed * 1021 + 17  # of environment and noise, and not the training environment's

    def record(self, rows: int, progress: Callable[[int], None]) -> None:
        """Records until there are ``rows`` rows; ``progress`` hears how many there are."""
        self._start(rows)
        try:
            progress(self.recorded)
            while self.recorded < rows:
                count = min(CHUNK_ROWS, rows - self.recorded)
                save_atomically(self.folder / f"{self.recorded:012d}.pt", self._chunk(count, progress))
                self.interaction.buffer.clear()
                self.recorded += count
        finally:
            self.interaction.env.close()

    def blocks(self) -> Iterator[Block]:
        """The rows in order."""
        env = self.make()
        env.close()
        for path in self._paths():
            chunk = _load(path)
            infos = {name: values.numpy() for name, values in chunk["infos"].items()}
            yield block(chunk["interaction"]["buffer"]["rows"], infos, env.low, env.high)

    def _start(self, rows: int) -> None:
        env = self.make()
        assert env.observation_space.shape is not None
        buffer = Ring(min(CHUNK_ROWS, rows), env.observation_space.shape[0], len(env.low))
        env.close()
        self.interaction = Interaction(self.make, buffer, self.seed)
        self.generator, self.recorded = np.random.default_rng(self.seed), 0
        paths = self._paths()
        if not paths:
            return
        last = _load(paths[-1])
        self.interaction.load_state(last["interaction"])
        if last["interaction"]["environment"] is None:
            # the episode that was running cannot go on: its last row says so now
            last["interaction"]["buffer"] = buffer.state()
            save_atomically(paths[-1], last)
        self.recorded, self.generator = int(paths[-1].stem) + len(buffer), unpack(last["generator"])
        buffer.clear()

    def _chunk(self, count: int, progress: Callable[[int], None]) -> dict[str, Any]:
        noises: list[NDArray[np.float32]] = []
        states: list[dict[str, NDArray[np.float32]]] = []
        for done in range(1, count + 1):
            noises.append(self.behaviour.draw(self.generator))
            states.append(self.interaction.env.simulator_state())
            self.interaction.step(lambda observation: self.behaviour.act(observation, noises[-1]))
            if done % 100 == 0 or done == count:
                progress(self.recorded + done)
        state = self.interaction.state()
        infos = {name: np.stack([entry[name] for entry in states]) for name in states[0]}
        log_prob = self.behaviour.log_prob(state["buffer"]["rows"]["observation"].numpy(), np.stack(noises))
        if log_prob is not None:
            infos[LOG_PROB] = log_prob
        return {
            "infos": {name: torch.from_numpy(values) for name, values in infos.items()},
            "interaction": state,
            "generator": pack(self.generator),
        }

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9]*.pt"))


def block(rows: dict[str, torch.Tensor], infos: dict[str, NDArray[Any]], low: Any, high: Any) -> Block:
    """The rows of :meth:`Ring.state`, in time order, as D4RL's columns.

    Actions in ``[-1, 1]^A`` and their log-densities, which ``infos`` has beside simulator states, get the environment's
    units.
    """
    columns: Block = {
        "observations": rows["observation"].numpy(),
        "actions": native_actions(rows["action"].numpy(), low, high).astype(np.float32),
        "rewards": rows["reward"].numpy(),
        "next_observations": rows["next/observation"].numpy(),
        "terminals": rows["next/terminated"].numpy(),
        "timeouts": rows["next/truncated"].numpy(),
    }
    columns |= {f"infos/{name}": values for name, values in infos.items()}
    if LOG_PROB in infos:
        columns[f"infos/{LOG_PROB}"] = infos[LOG_PROB] - np.float32(np.log((high - low) / 2).sum())
    return columns


def replay(state: dict[str, Any], record: dict[str, NDArray[Any]], low: Any, high: Any, newest: int) -> Block:
    """The ``newest`` rows, or fewer, of a training run's buffer (:meth:`Ring.state`), oldest first.

    ``record`` has simulator states and log-densities of every step of the run, as ``callbacks/recorder.py`` keeps them.
    """
    size = len(state["rows"]["reward"])
    shift = -state["cursor"] if size == state["capacity"] else 0
    kept = min(size, newest)
    rows = {name: values.roll(shift, 0)[size - kept :] for name, values in state["rows"].items()}
    return block(rows, {name: values[len(values) - kept :] for name, values in record.items()}, low, high)


def _load(path: Path) -> dict[str, Any]:
    with refusing(f"{path}: it cannot be read", "Remove it and the files after it; they are made again."):
        return dict(inert.load(path))
