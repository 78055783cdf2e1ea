"""Whole episodes, of which a new one takes the place of the oldest (Online Decision Transformer)."""

from collections import deque
from typing import Any

import numpy as np
import torch
from torch import Tensor

from o2o_lightning.replay.store import TransitionStore
from o2o_lightning.replay.table import TERMINATED, TRUNCATED


class EpisodeBuffer:
    """The dataset's best ``capacity`` episodes, the worst of them the oldest, and those that are played.

    Rows are raw transitions as the dataset's; those of the episode under way are not drawn.
    """

    def __init__(self, dataset: TransitionStore, capacity: int) -> None:
        self.layout, self.manifest, self.capacity = dataset.layout, dataset.manifest, capacity
        order = dataset.episode_returns()[dataset.complete].argsort(stable=True)[-capacity:]
        bounds = dataset.episodes[dataset.complete][order].tolist()
        self.episodes = deque((dataset.matrix[start:stop] for start, stop in bounds), maxlen=capacity)
        self.played: deque[Tensor] = deque(maxlen=capacity)
        self.under_way: list[Tensor] = []
        self._store: TransitionStore | None = None

    @property
    def store(self) -> TransitionStore:
        """All that may be drawn, as a dataset; another one when an episode has ended."""
        if self._store is None:
            stops = torch.tensor([len(episode) for episode in self.episodes]).cumsum(0)
            bounds = torch.stack((torch.cat((stops.new_zeros(1), stops[:-1])), stops), 1)
            complete = torch.ones(len(bounds), dtype=torch.bool)
            self._store = TransitionStore(torch.cat([*self.episodes]), None, bounds, complete, self.manifest)
        return self._store

    def add(self, *transition: Any) -> None:
        """Writes one: observation ``[S]``, action ``[A]``, reward, next observation ``[S]``, terminated, truncated."""
        *_, terminated, truncated = transition
        row = np.concatenate([np.atleast_1d(part) for part in transition], dtype=np.float32)
        self.under_way.append(torch.from_numpy(row))
        if terminated or truncated:
            self._close()

    def truncate_last(self) -> None:
        """Marks the newest transition as cut off: its episode will not go on."""
        if self.under_way:
            newest = self.layout.columns(self.under_way[-1])
            newest[TRUNCATED].copy_(1.0 - newest[TERMINATED])
            self._close()

    def state(self) -> dict[str, Any]:
        """What has been played: tensors."""
        none = torch.empty(0, self.layout.width)
        lengths = torch.tensor([len(episode) for episode in self.played], dtype=torch.int64)
        rows, under_way = torch.cat([none, *self.played]), torch.stack(self.under_way) if self.under_way else none
        return {"rows": rows, "lengths": lengths, "under_way": under_way}

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state`, in a buffer that nothing has been added to."""
        for episode in torch.split(state["rows"], state["lengths"].tolist()):
            self._take(episode)
        self.under_way = [*state["under_way"]]

    def _close(self) -> None:
        self._take(torch.stack(self.under_way))
        self.under_way = []

    def _take(self, episode: Tensor) -> None:
        self.episodes.append(episode)
        self.played.append(episode)
        self._store = None
