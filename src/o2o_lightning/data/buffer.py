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
from o2o_lightning.data.rewards import RewardMap
from o2o_lightning.data.store import TransitionStore, nested

Mix = Literal["half", "all", "part", "none"]
logging.getLogger("torchrl").setLevel(logging.WARNING)  # one line a buffer on stderr, of no use to a user
BEST_EPISODES = 50  # size of the replay mode `part` (D44)
BLOCK = 16  # batches


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


class OfflineHalf:
    """The dataset's part of each batch: drawn and gathered for sixteen batches at once, since it never changes."""

    def __init__(self, store: TransitionStore, count: int) -> None:
        self.store, self.count = store, count
        self._rows = torch.empty(0, count, dtype=torch.int64)
        self._parts: list[dict[Any, Tensor]] = []  # of the rows, those that come next last

    def next(self, generator: torch.Generator) -> dict[Any, Tensor]:
        """Columns ``[count, …]`` of one batch."""
        if not self._parts:
            self._gather(self.store.sample_rows((BLOCK, self.count), generator))
        return self._parts.pop()

    def state(self) -> dict[str, Any]:
        """The rows that were drawn and not yet used."""
        return {"rows": self._rows[len(self._rows) - len(self._parts) :].clone()}

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state`."""
        self._gather(state["rows"])

    def _gather(self, rows: Tensor) -> None:
        self._rows = rows
        columns = {key: column.unbind() for key, column in self.store.pick(rows).items()} if len(rows) else {}
        self._parts = [{key: parts[i] for key, parts in columns.items()} for i in reversed(range(len(rows)))]


class Replay:
    """Draws the online phase's batches.

    ``half``: an equal number of online and offline transitions, in that order; ``all`` and ``part``: the online buffer
    starts with the whole dataset, or with its 50 best episodes by the ``rewards`` learned from, and everything is drawn
    from it; ``none``: online only.
    """

    def __init__(
        self,
        mix: Mix,
        store: TransitionStore | None,
        buffer: OnlineBuffer,
        batch_size: int,
        rewards: RewardMap = RewardMap(),
    ) -> None:
        self.store, self.buffer = store, buffer
        self.offline = OfflineHalf(store, batch_size // 2) if store is not None and mix == "half" else None
        self.batch_size = batch_size
        if store is not None and mix == "all":
            newest = slice(max(store.td_count - buffer.capacity, 0), store.td_count)
            rows = torch.arange(newest.start, newest.stop) if store.td_rows is None else store.td_rows[newest]
            for block in blocks(len(rows)):
                buffer.extend(store.gather(rows[block]))
        if store is not None and mix == "part":
            best = store.top_episodes(BEST_EPISODES, scale=rewards.scale, shift=rewards.shift)
            buffer.extend(store.gather(best))

    def sample(self, generator: torch.Generator) -> TensorDict:
        """One batch of raw transitions ``[B]``."""
        return nested(self.columns(generator), torch.Size([self.batch_size]))

    def columns(self, generator: torch.Generator) -> dict[Any, Tensor]:
        """:meth:`sample`, not yet nested."""
        if self.offline is None:
            return self.buffer.pick(self.buffer.sample_rows(self.batch_size, generator))
        online = self.buffer.pick(self.buffer.sample_rows(self.batch_size - self.offline.count, generator))
        offline = self.offline.next(generator)
        # column by column: TensorDict's own concatenation takes as long as the gathers
        return {key: torch.cat((column, offline[key])) for key, column in online.items()}

    def state(self) -> dict[str, Any]:
        """What has been drawn and not yet used; the buffer has a state of its own."""
        return {} if self.offline is None else self.offline.state()

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state`."""
        if self.offline is not None:
            self.offline.load_state(state)


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
