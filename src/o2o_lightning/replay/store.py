"""One store of transitions, whatever the source: a TorchRL buffer that owns them, and plain gathers for the hot path.

Shape letters: ``N`` transitions in time order, ``M`` of them usable for TD learning, ``E`` episodes, ``S``, ``A``
observation and action widths.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.nn.functional import embedding
from torchrl.data import ReplayBuffer

from o2o_lightning.blocks import blocks
from o2o_lightning.errors import UserError
from o2o_lightning.replay.manifest import Manifest

Key = str | tuple[str, str]

_RETURN_BLOCK = 1_000_000


class TransitionStore:
    """Transitions in time order.

    Keys: ``observation`` ``[N, S]``, ``action`` ``[N, A]`` in ``[-1, 1]``, ``reward`` ``[N]`` raw,
    ``("next", "observation")`` ``[N, S]``, ``("next", "terminated")`` and ``("next", "truncated")`` ``[N]`` bool.

    A row whose successor is unknown carries its own observation as ``("next", "observation")``. If that row
    bootstraps, it is left out of ``td_rows``: it counts for returns, and never for TD learning.

    Args:
        buffer: holds the rows; owner and serialiser.
        td_rows: ``[M]`` int64, ascending, or None where every row is usable.
        episodes: ``[E, 2]`` int64, start and stop of each episode's rows.
        complete: ``[E]`` bool, false where the recording stopped before the episode did.
        manifest: provenance and statistics.
    """

    def __init__(
        self, buffer: ReplayBuffer, td_rows: Tensor | None, episodes: Tensor, complete: Tensor, manifest: Manifest
    ) -> None:
        self.buffer = buffer
        self.td_rows = td_rows
        self.episodes = episodes
        self.complete = complete
        self.manifest = manifest
        self.leaves: TensorDict = _plain_leaves(buffer)
        self._attached: set[str] = set()
        self._all_td_rows: tuple[Tensor | None] | None = None  # while some of them are held out
        self._columns = self._list_columns()

    def __len__(self) -> int:
        return len(self.buffer)

    @property
    def td_count(self) -> int:
        """``M``, the number of rows usable for TD learning."""
        return len(self) if self.td_rows is None else len(self.td_rows)

    def gather(self, rows: Tensor) -> TensorDict:
        """Copies the rows ``[...]`` (int64) of every leaf, attached caches included; batch size is the index shape."""
        return nested(self.pick(rows), rows.shape)

    def pick(self, rows: Tensor) -> dict[Any, Tensor]:
        """:meth:`gather`, not yet nested."""
        flat, shape = rows.reshape(-1), rows.shape
        picked: dict[Any, Tensor] = {}
        for key, column in self._columns:
            # the same copy, but index_select of wide rows takes 4 to 10 times as long from about 4k rows on
            values = embedding(flat, column) if column.ndim == 2 else column.index_select(0, flat)
            if rows.ndim != 1:
                values = values.view((*shape, *column.shape[1:]))
            picked[key] = values
        return picked

    def sample_rows(self, shape: int | Sequence[int], generator: torch.Generator | None = None) -> Tensor:
        """Row numbers (int64) of the given shape, uniform with replacement over the rows usable for TD learning."""
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        drawn = torch.randint(self.td_count, shape, generator=generator)
        return drawn if self.td_rows is None else self.td_rows[drawn]

    def attach(self, name: str, values: Tensor) -> None:
        """Adds a per-transition cache ``[N, ...]`` that :meth:`gather` returns as well, replacing an earlier one."""
        if len(values) != len(self):
            raise ValueError(f"cache '{name}' has {len(values)} rows, the store has {len(self)}")
        if name in self.leaves and name not in self._attached:
            raise ValueError(f"'{name}' is a transition's own key and cannot be a cache")
        self._attached.add(name)
        self.leaves.set(name, values)
        self._columns = self._list_columns()

    def detach(self, name: str) -> None:
        """Removes a cache; a name that was never attached is an error."""
        self._attached.remove(name)
        self.leaves.del_(name)
        self._columns = self._list_columns()

    def hold_out(self, share: float, learn: bool = False) -> Tensor:
        """Usable rows (int64, ascending) of a fixed random ``share`` of the episodes, to measure on.

        They are drawn no more until :meth:`take_back`, unless ``learn``.
        """
        self.take_back()
        chosen = torch.zeros(len(self), dtype=torch.bool)
        chosen[held_out_rows(self.episodes, share)] = True
        usable = torch.arange(len(self)) if self.td_rows is None else self.td_rows
        held = chosen[usable]
        if not held.any() or held.all():  # a dataset of next to nothing
            return usable
        if not learn:
            self._all_td_rows, self.td_rows = (self.td_rows,), usable[~held]
        return usable[held]

    def take_back(self) -> None:
        """Undoes :meth:`hold_out`."""
        if self._all_td_rows is not None:
            (self.td_rows,), self._all_td_rows = self._all_td_rows, None

    def returns_to_go(self, discount: float, leak: bool = False, reward: Tensor | None = None) -> Tensor:
        r"""Discounted return from each row to its episode's end, ``[N]`` float32.

        :math:`G_t = r_t + \gamma (1 - e_t) G_{t+1}`, with :math:`e_t` = terminated or truncated. With ``leak`` only
        termination resets, as in O2PPO's released code, so that a time-out's return runs into the next episode.
        ``reward`` ``[N]`` replaces the stored, raw rewards.
        """
        reward = self.leaves["reward"] if reward is None else reward
        end = self.leaves["next", "terminated"]
        if not leak:
            end = end | self.leaves["next", "truncated"]
        returns = torch.empty(len(self), dtype=torch.float32)
        running = 0.0
        # float64 in a plain loop: the recursion is sequential, and at 10M rows this still takes seconds, once
        for block in reversed(list(blocks(len(self), _RETURN_BLOCK))):
            values = reward[block].double().tolist()
            ends = end[block].tolist()
            for row in range(len(values) - 1, -1, -1):
                running = values[row] + (0.0 if ends[row] else discount * running)
                values[row] = running
            returns[block] = torch.tensor(values, dtype=torch.float32)
        return returns

    def episode_returns(self) -> Tensor:
        """Undiscounted return of each episode, ``[E]`` float64, incomplete ones included."""
        return episode_sums(self.leaves["reward"], self.episodes)

    def top_episodes(self, count: int, td_only: bool = True, scale: float = 1.0, shift: float = 0.0) -> Tensor:
        """Rows (int64, ascending) of the ``count`` complete episodes of highest undiscounted return.

        With ``td_only``, without the rows whose successor is unknown, so that they can be replayed. The return is that
        of the rewards ``scale·r + shift``: a negative ``shift`` ranks the shorter of two successes higher.

        Raises:
            UserError: the dataset has no complete episode.
        """
        candidates = self.complete.nonzero().squeeze(-1)
        if len(candidates) == 0:
            raise UserError(
                f"dataset {self.manifest.source}: it has no complete episode to rank. "
                "Choose another replay mode, or a dataset whose episodes end."
            )
        lengths = self.episodes[:, 1] - self.episodes[:, 0]
        returns = scale * self.episode_returns() + shift * lengths
        order = returns[candidates].argsort(descending=True, stable=True)
        chosen = candidates[order[:count]]
        mask = torch.zeros(len(self), dtype=torch.bool)
        for start, stop in self.episodes[chosen].tolist():
            mask[start:stop] = True
        if td_only and self.td_rows is not None:
            usable = torch.zeros_like(mask)
            usable[self.td_rows] = True
            mask &= usable
        return mask.nonzero().squeeze(-1)

    def _list_columns(self) -> list[tuple[Key, Tensor]]:
        return list(self.leaves.items(include_nested=True, leaves_only=True))


def nested(columns: dict[Any, Tensor], shape: torch.Size) -> TensorDict:
    """Columns by name, or by ``("next", name)``, as transitions of batch size ``shape``; nothing is checked."""
    own = {key: column for key, column in columns.items() if isinstance(key, str)}
    successor = {key[1]: column for key, column in columns.items() if isinstance(key, tuple)}
    make = TensorDict._new_unsafe
    return make({**own, "next": make(successor, batch_size=shape)}, batch_size=shape)


def episode_sums(values: Tensor, episodes: Tensor) -> Tensor:
    """Sum of ``values`` ``[N]`` over each episode's rows, ``[E]`` float64; ``episodes`` ``[E, 2]`` cover all rows."""
    lengths = episodes[:, 1] - episodes[:, 0]
    owner = torch.repeat_interleave(torch.arange(len(episodes)), lengths)
    return torch.zeros(len(episodes), dtype=torch.float64).index_add_(0, owner, values.double())


def held_out_rows(episodes: Tensor, share: float) -> Tensor:
    """Rows (int64, ascending) of a fixed random ``share`` of the ``episodes`` ``[E, 2]``, at least one of them.

    Neighbouring states are alike, so that single rows held out would say nothing. Where there is one episode, its last
    rows are held out.
    """
    if len(episodes) == 1:
        start, stop = episodes[0].tolist()
        return torch.arange(min(stop - max(int((stop - start) * share), 1), stop - 1), stop)
    order = torch.randperm(len(episodes), generator=torch.Generator().manual_seed(0))
    count = min(max(round(len(episodes) * share), 1), len(episodes) - 1)
    chosen = episodes[order[:count].sort().values]
    return torch.cat([torch.arange(start, stop) for start, stop in chosen.tolist()])


def _plain_leaves(buffer: ReplayBuffer) -> TensorDict:
    # a MemoryMappedTensor re-dispatches every operation in Python; the same memory as a plain tensor does not
    views = buffer.storage[:]
    leaves = {
        key: views[key].as_subclass(Tensor)
        for key in views.keys(include_nested=True, leaves_only=True)
        if key[-1] != "index" and key != "index"
    }
    successor = {key[1]: leaf for key, leaf in leaves.items() if isinstance(key, tuple)}
    own = {key: leaf for key, leaf in leaves.items() if isinstance(key, str)}
    size = [len(buffer)]
    return TensorDict({**own, "next": TensorDict(successor, batch_size=size)}, batch_size=size)
