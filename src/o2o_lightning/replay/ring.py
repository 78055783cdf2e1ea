"""The transitions of the running policy: a table whose oldest rows are overwritten first."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDictBase
from torch import Tensor

from o2o_lightning.replay.table import TERMINATED, TRUNCATED, Layout, Table, nested

RETURN = "return_to_go"


class Ring(Table):
    """Single rows are written through numpy views, at a microsecond where TorchRL's writers take 250.

    ``cursor`` is the row that is written next, ``size`` counts those in use, ``written`` all that ever were.
    """

    def __init__(self, capacity: int, observation_dim: int, action_dim: int, *more: str) -> None:
        layout = Layout.of_transitions(observation_dim, action_dim, *more)
        super().__init__(layout, torch.empty(capacity, layout.width))
        self.capacity = capacity
        self.cursor = self.size = self.written = 0
        self._arrays: list[NDArray[Any]] = [column.numpy() for column in layout.columns(self.matrix).values()]

    @property
    def rows(self) -> Tensor:
        return self.matrix[: self.size]

    def __len__(self) -> int:
        return self.size

    @property
    def stamp(self) -> tuple[int, int]:
        return self.changes, self.written

    def since(self, stamp: tuple[int, int]) -> list[slice]:
        new = self.written - stamp[1]
        if stamp[0] != self.changes or not 0 <= new < self.capacity:
            return [slice(0, self.size)]
        wrapped = max(new - self.cursor, 0)  # behind the end
        parts = slice(self.capacity - wrapped, self.capacity), slice(self.cursor - new + wrapped, self.cursor)
        return [part for part in parts if part.start < part.stop]

    def add(self, *transition: Any) -> None:
        """Writes one: observation ``[S]``, action ``[A]``, reward, next observation ``[S]``, terminated, truncated."""
        for column, value in zip(self._arrays, transition, strict=True):
            column[self.cursor] = value
        self._advance(1)

    def extend(self, transitions: TensorDictBase) -> Tensor:
        """Writes a block of transitions ``[M]``, of which the newest ``capacity`` stay, and says to which rows."""
        rows = (torch.arange(len(transitions)) + self.cursor) % self.capacity
        self.matrix[rows[-self.capacity :]] = self.layout.rows(transitions[-self.capacity :])
        self._advance(len(transitions))
        return rows

    def clear(self) -> None:
        """Forgets all transitions; the next one goes to the first row."""
        self.cursor = self.size = 0

    def truncate_last(self) -> None:
        """Marks the newest transition as cut off: its episode will not go on."""
        if self.size:
            self.changes += 1
            newest = self.layout.columns(self.matrix[self.cursor - 1])
            newest[TRUNCATED].copy_(1.0 - newest[TERMINATED])

    def state(self) -> dict[str, Any]:
        """The written rows, and where the next one goes: tensors and primitives."""
        columns = {key: column.clone() for key, column in self.layout.shown(self.rows).items()}
        rows = {"/".join(key) if isinstance(key, tuple) else key: column for key, column in columns.items()}
        return {"rows": rows, "cursor": self.cursor, "capacity": self.capacity}

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state`; a larger ring takes them as well, oldest first."""
        self.size = self.written = len(state["rows"]["reward"])
        wrapped = self.size == state["capacity"] != self.capacity
        shift = -state["cursor"] if wrapped else 0
        rows = {tuple(name.split("/")) if "/" in name else name: column for name, column in state["rows"].items()}
        self.put(slice(None), {key: column.roll(shift, 0) for key, column in rows.items()})
        self.cursor = (self.size if wrapped else state["cursor"]) % self.capacity

    def _advance(self, count: int) -> None:
        self.cursor = (self.cursor + count) % self.capacity
        self.size = min(self.size + count, self.capacity)
        self.written += count


class LabelledRing(Ring):
    """A ring whose rows know their ``return_to_go``, and so are written when their episode has ended.

    Args:
        label: the column of an episode's rewards, terminations and truncations ``[M]``.
    """

    def __init__(
        self, capacity: int, observation_dim: int, action_dim: int, label: Callable[[Tensor, Tensor, Tensor], Tensor]
    ) -> None:
        super().__init__(capacity, observation_dim, action_dim, RETURN)
        self.label = label
        self.plain = Layout.of_transitions(observation_dim, action_dim)
        self._episode: list[Tensor] = []  # rows of the one under way

    def add(self, *transition: Any) -> None:
        *_, terminated, truncated = transition
        row = np.concatenate([np.atleast_1d(part) for part in transition], dtype=np.float32)
        self._episode.append(torch.from_numpy(row))
        if terminated or truncated:
            self._write()

    def truncate_last(self) -> None:
        if self._episode:
            self.plain.columns(self._episode[-1])[TRUNCATED].fill_(1.0)
            self._write()

    def state(self) -> dict[str, Any]:
        open_rows = torch.stack(self._episode) if self._episode else torch.empty(0, self.plain.width)
        return {**super().state(), "episode": open_rows}

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        self._episode = list(state["episode"])

    def _write(self) -> None:
        columns = self.plain.shown(torch.stack(self._episode))
        self._episode = []
        columns[RETURN] = self.label(columns["reward"], columns[TERMINATED], columns[TRUNCATED])
        self.extend(nested(columns, columns["reward"].shape))
