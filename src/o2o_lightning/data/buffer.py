"""The online half of the replay, and how it is mixed with the dataset."""

from __future__ import annotations

import logging
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import LazyTensorStorage, ReplayBuffer

from o2o_lightning.data.raw import blocks
from o2o_lightning.data.store import TransitionStore, nested

Mix = Literal["half", "all", "part", "none"]
logging.getLogger("torchrl").setLevel(logging.WARNING)  # one line a buffer on stderr, of no use to a user
BEST_EPISODES = 50  # size of the replay mode `part` (D44)


class OnlineBuffer:
    """Transitions of the running policy in a TorchRL buffer, oldest overwritten first.

    TorchRL owns, saves and restores the storage; single rows are written through numpy views of its tensors,
    which costs a microsecond where ``ReplayBuffer.add`` costs a quarter of a millisecond.
    """

    def __init__(self, capacity: int, observation_dim: int, action_dim: int) -> None:
        self.capacity = capacity
        self.buffer = ReplayBuffer(storage=LazyTensorStorage(capacity))
        self.buffer.extend(_blank(observation_dim, action_dim))  # allocates the storage
        self.leaves: TensorDictBase = self.buffer.storage._storage
        keys: list[Any] = list(self.leaves.keys(include_nested=True, leaves_only=True))
        self._columns: dict[Any, Tensor] = {key: self.leaves[key] for key in keys}
        self._rows: dict[Any, NDArray[Any]] = {key: column.numpy() for key, column in self._columns.items()}
        self.cursor, self.size = 0, 0

    def __len__(self) -> int:
        return self.size

    def add(
        self,
        observation: NDArray[np.float32],
        action: NDArray[np.float32],
        reward: float,
        next_observation: NDArray[np.float32],
        terminated: bool,
        truncated: bool,
    ) -> None:
        """Writes one transition: ``[S], [A]``, scalars, ``[S]``."""
        i, rows = self.cursor, self._rows
        rows["observation"][i] = observation
        rows["action"][i] = action
        rows["reward"][i] = reward
        rows["next", "observation"][i] = next_observation
        rows["next", "terminated"][i] = terminated
        rows["next", "truncated"][i] = truncated
        self._advance(1)

    def extend(self, transitions: TensorDictBase) -> None:
        """Writes a block of transitions ``[M]`` (the newest ``capacity`` of them)."""
        transitions = transitions[-self.capacity :]
        rows = (torch.arange(transitions.shape[0]) + self.cursor) % self.capacity
        for key, column in self._columns.items():
            column[rows] = transitions[key]
        self._advance(transitions.shape[0])

    def clear(self) -> None:
        """Forgets all transitions; the next one goes to the first row."""
        self.cursor, self.size = 0, 0

    def gather(self, rows: Tensor) -> TensorDict:
        """Copies of the transitions at ``rows`` ``[M]``."""
        return nested(self.pick(rows), rows.shape)

    def pick(self, rows: Tensor) -> dict[Any, Tensor]:
        """:meth:`gather`, not yet nested."""
        return {key: column.index_select(0, rows) for key, column in self._columns.items()}

    def sample_rows(self, count: int, generator: torch.Generator) -> Tensor:
        """``count`` uniform rows with replacement."""
        return torch.randint(self.size, (count,), generator=generator)

    def state(self) -> dict[str, Any]:
        """The written rows, and where the next one goes: tensors and primitives."""
        rows = {"/".join(key) if isinstance(key, tuple) else key: column[: self.size].clone()
                for key, column in self._columns.items()}  # fmt: skip
        return {"rows": rows, "cursor": self.cursor, "capacity": self.capacity}

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state`; a larger buffer takes them as well, oldest first."""
        self.size = len(state["rows"]["reward"])
        wrapped = self.size == state["capacity"] != self.capacity
        for key, column in self._columns.items():
            saved = state["rows"]["/".join(key) if isinstance(key, tuple) else key]
            column[: self.size] = saved.roll(-state["cursor"], 0) if wrapped else saved
        self.cursor = (self.size if wrapped else state["cursor"]) % self.capacity

    def truncate_last(self) -> None:
        """Marks the newest transition as cut off: its episode will not go on."""
        if self.size:
            self._rows["next", "truncated"][self.cursor - 1] = not self._rows["next", "terminated"][self.cursor - 1]

    def synchronize(self) -> ReplayBuffer:
        """Tells TorchRL how far the rows go, and returns its buffer for saving."""
        self.buffer.storage.load_state_dict({"_storage": self.leaves.state_dict(), "_len": self.size})
        self.buffer.writer.load_state_dict({"_cursor": self.cursor})
        return self.buffer

    def _advance(self, count: int) -> None:
        self.cursor = (self.cursor + count) % self.capacity
        self.size = min(self.size + count, self.capacity)


class Replay:
    """Draws the online phase's batches.

    ``half``: an equal number of online and offline transitions, in that order; ``all`` and ``part``: the online buffer
    starts with the whole dataset, or with its 50 best episodes, and everything is drawn from it; ``none``: online only.
    """

    def __init__(self, mix: Mix, store: TransitionStore | None, buffer: OnlineBuffer, batch_size: int) -> None:
        self.store, self.buffer = store, buffer
        self.offline_count = batch_size // 2 if mix == "half" else 0
        self.online_count = batch_size - self.offline_count
        if store is not None and mix == "all":
            newest = slice(max(store.td_count - buffer.capacity, 0), store.td_count)
            rows = torch.arange(newest.start, newest.stop) if store.td_rows is None else store.td_rows[newest]
            for block in blocks(len(rows)):
                buffer.extend(store.gather(rows[block]))
        if store is not None and mix == "part":
            buffer.extend(store.gather(store.top_episodes(BEST_EPISODES)))

    def sample(self, generator: torch.Generator) -> TensorDict:
        """One batch of raw transitions ``[B]``."""
        return nested(self.columns(generator), torch.Size([self.online_count + self.offline_count]))

    def columns(self, generator: torch.Generator) -> dict[Any, Tensor]:
        """:meth:`sample`, not yet nested."""
        parts = [self.buffer.pick(self.buffer.sample_rows(self.online_count, generator))]
        if self.offline_count:
            assert self.store is not None
            parts.append(self.store.pick(self.store.sample_rows(self.offline_count, generator)))
        # column by column: TensorDict's own concatenation takes as long as the gathers
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]} if len(parts) > 1 else parts[0]


def _blank(observation_dim: int, action_dim: int) -> TensorDict:
    successor = {
        "observation": torch.zeros(1, observation_dim),
        "terminated": torch.zeros(1, dtype=torch.bool),
        "truncated": torch.zeros(1, dtype=torch.bool),
    }
    return TensorDict(
        {
            "observation": torch.zeros(1, observation_dim),
            "action": torch.zeros(1, action_dim),
            "reward": torch.zeros(1),
            "next": TensorDict(successor, [1]),
        },
        [1],
    )
