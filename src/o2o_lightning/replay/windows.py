"""Stretches of a dataset's episodes with returns-to-go, as sequence models see them.

Shape letters: ``T`` time steps of a window, ``…`` any batch shape.
"""

from collections.abc import Iterator, Sequence

import torch
from tensordict import TensorDict
from torch import Tensor

from o2o_lightning.blocks import blocks
from o2o_lightning.objectives.returns import discounted_returns
from o2o_lightning.replay.store import TransitionStore
from o2o_lightning.replay.table import TERMINATED, TRUNCATED


class Windows:
    """Windows of ``length`` (T) steps that start anywhere in an episode, padded behind its end; ``scale``s returns."""

    def __init__(self, store: TransitionStore, length: int, scale: float) -> None:
        self.store, self.length, self.scale = store, length, scale
        self.returns_to_go = discounted_returns(store["reward"], store[TERMINATED] | store[TRUNCATED], 1.0)
        self._offsets = torch.arange(length)
        self._stops = store.episodes[:, 1].contiguous()
        kept = store.episodes[store.complete]
        self._ends = (kept[:, 1] - kept[:, 0]).cumsum(0)  # of each kept episode in the concatenation of all
        self._shifts = kept[:, 1] - self._ends

    def sample_rows(self, shape: int | Sequence[int], generator: torch.Generator | None = None) -> Tensor:
        """First rows (int64) of windows: an episode in proportion to its length, then any of its steps.

        Together that is any step of any episode, uniformly. Episodes whose recording stopped early are left out: what
        they would still have collected is unknown.
        """
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        drawn = torch.randint(int(self._ends[-1]), shape, generator=generator)
        return drawn + self._shifts[torch.searchsorted(self._ends, drawn, right=True)]

    def gather(self, rows: Tensor, target: float | None = None) -> TensorDict:
        """The windows that start at ``rows`` ``[…]``: raw observations, and ``real`` false where they are padded.

        The returns-to-go are those that the episode had. With ``target`` they are what acting would see at the same
        step, had it asked for ``target`` when the episode began: the target less the rewards so far.

        Padding repeats the episode's last step; what is behind a step in a window never reaches it.
        """
        start, stop = self._episode(rows)
        start, stop = start.unsqueeze(-1), stop.unsqueeze(-1)
        wanted = rows.unsqueeze(-1) + self._offsets
        taken = torch.minimum(wanted, stop - 1)
        to_go = self.returns_to_go[taken]
        steps = self.store.layout.columns(self.store.pick(taken))
        if target is not None:
            to_go = target - self.returns_to_go[start] + to_go
        window = {"return_to_go": to_go * self.scale, "observation": steps["observation"], "action": steps["action"]}
        return TensorDict({**window, "timestep": taken - start, "real": wanted < stop}, batch_size=rows.shape)

    def contexts(self, block: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Windows that hold every row of the store once behind its longest context, up to ``length`` steps.

        Yields their first rows ``[B]``, B at most ``block``, and which of their steps are meant, ``[B, T]`` bool: all
        of an episode's first window, and the last one of any later window.
        """
        for part in blocks(len(self.store), block):
            rows = torch.arange(part.start, part.stop)
            start, stop = self._episode(rows)
            first = rows == start
            whole = first | (rows + self.length <= stop)
            rows, first, stop = rows[whole], first[whole].unsqueeze(-1), stop[whole].unsqueeze(-1)
            real = rows.unsqueeze(-1) + self._offsets < stop
            yield rows, real & (first | (self._offsets == self.length - 1))

    def _episode(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Start and stop of each row's episode."""
        owner = torch.searchsorted(self._stops, rows, right=True)
        return self.store.episodes[owner, 0], self.store.episodes[owner, 1]
