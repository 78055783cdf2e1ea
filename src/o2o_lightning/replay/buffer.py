"""The replay buffer of a run: TorchRL's, with tables for its storage and the mixing rules for its samplers."""

from __future__ import annotations

import logging
from typing import Any, Literal

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import ReplayBuffer

from o2o_lightning.blocks import blocks
from o2o_lightning.replay.balanced import Balanced, Entry
from o2o_lightning.replay.rewards import RewardMap
from o2o_lightning.replay.ring import Ring
from o2o_lightning.replay.samplers import Mixed, Numbers, Uniform
from o2o_lightning.replay.storage import RingWriter, Tables
from o2o_lightning.replay.store import TransitionStore
from o2o_lightning.replay.table import Layout, Table

Mix = Literal["half", "proportional", "all", "part", "none", "balanced"]
DRAWN_BESIDE = ("half", "proportional", "balanced")  # modes in which batches are mixed of dataset and ring
logging.getLogger("torchrl").setLevel(logging.WARNING)  # one line a buffer on stderr, of no use to a user
BEST_EPISODES = 50  # size of the replay mode `part` (D44)


class Replay(ReplayBuffer):  # type: ignore[misc]
    """One buffer for all phases of a run: the memory that training reads and writes, at any moment.

    It holds what the phase learns from: the dataset, and behind it the online ring where batches are mixed of both; the
    ring alone where it starts with what is wanted of the dataset. ``sample`` draws by the phase's rule, raw transitions
    with a generator of its own; :meth:`rows` is training's.
    """

    def __init__(self, store: TransitionStore | None = None) -> None:
        self.rule, self.tables = Uniform(), Tables()
        own = {"storage": self.tables, "sampler": self.rule, "writer": RingWriter(), "generator": torch.Generator()}
        super().__init__(**own, collate_fn=torch.nn.Identity())
        self.learn_from(*(() if store is None else (store,)))

    @property
    def layout(self) -> Layout:
        """What is where in a row of :meth:`rows`."""
        return self.tables.tables[-1].layout

    def learn_from(self, *tables: Table, rule: Uniform | None = None) -> None:
        """From now on, the rows of these ``tables``, drawn by ``rule``."""
        self.tables.hold(*tables)
        self.rule = rule or Uniform()
        self.set_sampler(self.rule)
        self.set_rng(self._rng)

    def mix(
        self,
        mode: Mix,
        store: TransitionStore | None,
        ring: Ring,
        rewards: RewardMap = RewardMap(),
        entry: Entry = Entry(),
        share: float = 0.5,
    ) -> None:
        """Learns from a phase's ``ring`` and the dataset.

        ``half``: online and offline transitions, in that order, ``share`` of them offline; ``proportional``: as many of
        each as there are; ``all`` and ``part``: the ring starts with the whole dataset, or with its 50 best episodes by
        the ``rewards`` learned from, and everything is drawn from it; ``none``: online only; ``balanced``: by
        priorities, new rows by ``entry``.
        """
        if store is None or mode not in DRAWN_BESIDE:
            self.learn_from(ring)
        elif mode == "balanced":
            self.learn_from(store, ring, rule=Balanced(store, ring, entry))
        else:
            cached = [str(key) for key in ring.layout.widths if key not in store.layout.widths]
            self.learn_from(store, ring, rule=Mixed(store, *cached, share=share if mode == "half" else None))
        if store is not None and mode == "all":
            newest = slice(max(store.td_count - ring.capacity, 0), store.td_count)
            rows = torch.arange(newest.start, newest.stop) if store.td_rows is None else store.td_rows[newest]
            for block in blocks(len(rows)):
                ring.extend(store.gather(rows[block]))
        if store is not None and mode == "part":
            ring.extend(store.gather(store.top_episodes(BEST_EPISODES, scale=rewards.scale, shift=rewards.shift)))

    def numbers(self, count: int, generator: torch.Generator) -> Numbers:
        """Which rows training's next batch of ``count`` has, those of each table or draw apart."""
        return self.rule.numbers(self.tables.tables, count, generator)

    def pick(self, numbers: Numbers) -> Tensor:
        """Raw transitions of those ``numbers``, as rows ``[B, W]`` of a table; gathered where the tables are near."""
        return self.rule.pick([table.near for table in self.tables.tables], numbers)

    def rows(self, count: int, generator: torch.Generator) -> Tensor:
        """Training's next batch of raw transitions, as rows ``[B, W]`` of a table."""
        return self.pick(self.numbers(count, generator))

    def mark_update(self, index: Any) -> None:
        self.rule.mark_update(index)
        if self.sampler is not self.rule:
            super().mark_update(index)

    def __setitem__(self, index: Any, value: Any) -> None:
        if isinstance(index, str) or (isinstance(index, tuple) and all(isinstance(part, str) for part in index)):
            self.set_(index, value)
        else:
            super().__setitem__(index, value)

    def set_at_(self, key: Any, value: Any, index: Any) -> Replay:
        shape = torch.arange(len(self))[index].shape
        value = torch.as_tensor(value, dtype=torch.float32)
        column = value if value.ndim >= len(shape) else value.expand(shape)
        self.tables.set(index, TensorDict({key: column}, batch_size=shape))
        return self

    def set_(self, key: Any, value: Any) -> Replay:
        return self.set_at_(key, value, slice(None))

    def update_(self, input_dict_or_td: Any, clone: bool = False, *, keys_to_update: Any = None) -> Replay:
        new = input_dict_or_td
        rows = new if isinstance(new, TensorDictBase) else TensorDict(new, batch_size=[len(self)])
        self.tables.set(slice(None), rows if keys_to_update is None else rows.select(*keys_to_update))
        return self
