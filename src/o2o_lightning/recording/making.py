"""Rows of a new dataset: rollouts of a policy in files that a killed process's successor goes on with, or a replay."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from o2o_lightning.checkpoint.io import save_atomically
from o2o_lightning.envs.make import UnitAction, native_actions
from o2o_lightning.envs.simulator import simulator_state
from o2o_lightning.envs.snapshot import pack, unpack
from o2o_lightning.errors import UserError
from o2o_lightning.recording.behaviour import LOG_PROB, Behaviour
from o2o_lightning.recording.writer import Block
from o2o_lightning.replay.interaction import Interaction
from o2o_lightning.replay.ring import Ring

CHUNK_ROWS = 4096  # environment steps that a kill can cost


class Rollouts:
    """Rollouts of ``behaviour``, one environment, episode after episode.

    Each chunk is a file of rows and of what the next chunk starts from (environment, noise): the chunks are the same
    whether one process makes them or many.

    Args:
        folder: where the chunks go; those that are there already are kept.
        make: makes the environment.
        behaviour: acts.
        seed: of the environment and of the noise.
    """

    def __init__(self, folder: Path, make: Callable[[], UnitAction], behaviour: Behaviour, seed: int) -> None:
        self.folder, self.make, self.behaviour = folder, make, behaviour
        self.seed = seed * 1021 + 17  # not the training environment's

    def record(self, rows: int, progress: Callable[[int], None]) -> None:
        """Records until there are ``rows`` rows; ``progress`` hears how many there are."""
        interaction, generator, recorded = self._start(rows)
        try:
            progress(recorded)
            while recorded < rows:
                count = min(CHUNK_ROWS, rows - recorded)
                chunk = self._chunk(interaction, generator, count, partial(_add, progress, recorded))
                save_atomically(self.folder / f"{recorded:012d}.pt", chunk)
                interaction.buffer.clear()
                recorded += count
        finally:
            interaction.env.close()

    def blocks(self) -> Iterator[Block]:
        """The rows in order."""
        env = self.make()
        low, high = env.low, env.high
        env.close()
        for path in self._paths():
            chunk = _load(path)
            infos = {name: values.numpy() for name, values in chunk["infos"].items()}
            yield block(chunk["interaction"]["buffer"]["rows"], infos, low, high)

    def _start(self, rows: int) -> tuple[Interaction, np.random.Generator, int]:
        env = self.make()
        assert env.observation_space.shape is not None
        buffer = Ring(min(CHUNK_ROWS, rows), env.observation_space.shape[0], len(env.low))
        env.close()
        interaction = Interaction(self.make, buffer, self.seed)
        generator = np.random.default_rng(self.seed)
        paths = self._paths()
        if not paths:
            return interaction, generator, 0
        last = _load(paths[-1])
        interaction.load_state(last["interaction"])
        if last["interaction"]["environment"] is None:
            # the episode that was running cannot go on: its last row says so now
            last["interaction"]["buffer"] = buffer.state()
            save_atomically(paths[-1], last)
        recorded = int(paths[-1].stem) + len(buffer)
        buffer.clear()
        return interaction, unpack(last["generator"]), recorded

    def _chunk(
        self, interaction: Interaction, generator: np.random.Generator, count: int, progress: Callable[[int], None]
    ) -> dict[str, Any]:
        noises: list[NDArray[np.float32]] = []
        states: list[dict[str, NDArray[np.float32]]] = []

        def act(observation: NDArray[np.float32]) -> NDArray[np.float32]:
            return self.behaviour.act(observation, noises[-1])

        for done in range(count):
            noises.append(self.behaviour.draw(generator))
            states.append(simulator_state(interaction.env))
            interaction.step(act)
            if done % 100 == 99:
                progress(done + 1)
        progress(count)
        state = interaction.state()
        infos = {name: np.stack([entry[name] for entry in states]) for name in states[0]}
        log_prob = self.behaviour.log_prob(state["buffer"]["rows"]["observation"].numpy(), np.stack(noises))
        if log_prob is not None:
            infos[LOG_PROB] = log_prob
        return {
            "infos": {name: torch.from_numpy(values) for name, values in infos.items()},
            "interaction": state,
            "generator": pack(generator),
        }

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9]*.pt"))


def _add(progress: Callable[[int], None], before: int, done: int) -> None:
    progress(before + done)


def block(rows: dict[str, torch.Tensor], infos: dict[str, NDArray[Any]], low: Any, high: Any) -> Block:
    """The rows of a buffer's state in D4RL's columns; actions, and their log-densities, in the environment's units.

    Args:
        rows: see :meth:`Ring.state`, in time order.
        infos: simulator states, and log-densities of actions in ``[-1, 1]^A``.
        low, high: the environment's bounds ``[A]``.
    """
    columns: Block = {
        "observations": rows["observation"].numpy(),
        "actions": native_actions(rows["action"].numpy(), low, high).astype(np.float32),
        "rewards": rows["reward"].numpy(),
        "next_observations": rows["next/observation"].numpy(),
        "terminals": rows["next/terminated"].numpy(),
        "timeouts": rows["next/truncated"].numpy(),
    }
    for name, values in infos.items():
        if name == LOG_PROB:
            values = values - np.float32(np.log((high - low) / 2).sum())
        columns[f"infos/{name}"] = values
    return columns


def replay(state: dict[str, Any], record: dict[str, NDArray[Any]], low: Any, high: Any, newest: int) -> Block:
    """The newest rows of a training run's buffer, oldest first.

    Args:
        state: the buffer's, see :meth:`Ring.state`.
        record: simulator states and log-densities of every step of the run, as ``callbacks/recorder.py`` keeps them.
        low, high: the environment's bounds ``[A]``.
        newest: how many rows at most.
    """
    size = len(state["rows"]["reward"])
    shift = -state["cursor"] if size == state["capacity"] else 0
    kept = min(size, newest)
    rows = {name: values.roll(shift, 0)[size - kept :] for name, values in state["rows"].items()}
    return block(rows, {name: values[len(values) - kept :] for name, values in record.items()}, low, high)


def _load(path: Path) -> dict[str, Any]:
    try:
        chunk: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: it cannot be read. Remove it and the files after it; they are made again.") from error
    return chunk
