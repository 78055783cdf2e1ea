"""The online half of the replay, and how it is mixed with the dataset."""

from __future__ import annotations

import logging
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import ReplayBuffer, TensorStorage

from o2o_lightning.blocks import blocks
from o2o_lightning.replay.rewards import RewardMap
from o2o_lightning.replay.store import TransitionStore, nested
from o2o_lightning.replay.table import FLAGS, Layout

Mix = Literal["half", "all", "part", "none"]
logging.getLogger("torchrl").setLevel(logging.WARNING)  # one line a buffer on stderr, of no use to a user
BEST_EPISODES = 50  # size of the replay mode `part` (D44)
BLOCK = 16  # batches


class OnlineBuffer:
    """Transitions of the running policy in a TorchRL buffer, oldest overwritten first.

    The storage's tensors are the columns of one table. Single rows are written through numpy views of them, which costs
    a microsecond where ``ReplayBuffer.add`` costs a quarter of a millisecond; flags are 0 or 1 in it.
    """

    def __init__(self, capacity: int, observation_dim: int, action_dim: int) -> None:
        self.capacity = capacity
        self.layout = Layout(observation_dim, action_dim)
        self.table = torch.empty(capacity, self.layout.width)
        self._columns = self.layout.columns(self.table)
        self._rows: dict[Any, NDArray[Any]] = {key: column.numpy() for key, column in self._columns.items()}
        self.leaves: TensorDictBase = nested(self._columns, torch.Size([capacity]))
        self.buffer = ReplayBuffer(storage=TensorStorage(self.leaves))
        self.cursor, self.size = 0, 0
        self.synchronize()

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
        self.table[rows] = self.layout.table(transitions)
        self._advance(transitions.shape[0])

    def clear(self) -> None:
        """Forgets all transitions; the next one goes to the first row."""
        self.cursor, self.size = 0, 0

    def gather(self, rows: Tensor) -> TensorDict:
        """Copies of the transitions at ``rows`` ``[M]``."""
        return self.transitions(self.pick(rows))

    def pick(self, rows: Tensor) -> Tensor:
        """The same as rows ``[M, W]`` of the table."""
        return self.table.index_select(0, rows)

    def transitions(self, table: Tensor) -> TensorDict:
        """Rows ``[M, W]`` of a table by name, flags as such."""
        return nested(_with_flags(self.layout.columns(table)), table.shape[:-1])

    def sample_rows(self, count: int, generator: torch.Generator) -> Tensor:
        """``count`` uniform rows with replacement."""
        return torch.randint(self.size, (count,), generator=generator)

    def state(self) -> dict[str, Any]:
        """The written rows, and where the next one goes: tensors and primitives."""
        columns = _with_flags({key: column[: self.size].clone() for key, column in self._columns.items()})
        rows = {"/".join(key) if isinstance(key, tuple) else key: column for key, column in columns.items()}
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
        """Tells TorchRL how far the rows go, and returns its buffer, to draw from or to save."""
        self.buffer.storage._len = self.size
        self.buffer.writer.load_state_dict({"_cursor": self.cursor})
        return self.buffer

    def _advance(self, count: int) -> None:
        self.cursor = (self.cursor + count) % self.capacity
        self.size = min(self.size + count, self.capacity)


class OfflineHalf:
    """The dataset's part of each batch: drawn and gathered for sixteen batches at once, since it never changes."""

    def __init__(self, store: TransitionStore, count: int, layout: Layout) -> None:
        self.store, self.count, self.layout = store, count, layout
        self._rows = torch.empty(0, count, dtype=torch.int64)
        self._parts: list[Tensor] = []  # of the rows, those that come next last

    def next(self, generator: torch.Generator) -> Tensor:
        """One batch's ``[count, W]``."""
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
        self._parts = [*self.layout.table(self.store.pick(rows))][::-1] if len(rows) else []


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
        self.offline: OfflineHalf | None = None
        self.batch_size = batch_size
        if store is not None and mix == "half":
            self.offline = OfflineHalf(store, batch_size // 2, buffer.layout)
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
        return self.buffer.transitions(self.rows(generator))

    def rows(self, generator: torch.Generator) -> Tensor:
        """The same as rows ``[B, W]`` of a table."""
        if self.offline is None:
            return self.buffer.pick(self.buffer.sample_rows(self.batch_size, generator))
        online = self.buffer.pick(self.buffer.sample_rows(self.batch_size - self.offline.count, generator))
        return torch.cat((online, self.offline.next(generator)))

    def state(self) -> dict[str, Any]:
        """What has been drawn and not yet used; the buffer has a state of its own."""
        return {} if self.offline is None else self.offline.state()

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state`."""
        if self.offline is not None:
            self.offline.load_state(state)


def _with_flags(columns: dict[Any, Tensor]) -> dict[Any, Tensor]:
    return columns | {key: columns[key].bool() for key in FLAGS}
