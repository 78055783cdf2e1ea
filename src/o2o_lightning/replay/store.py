"""The dataset: a table of transitions in time order, with what is known of its episodes.

Shape letters: ``N`` transitions in time order, ``M`` of them usable for TD learning, ``E`` episodes, ``S``, ``A``
observation and action widths.
"""

import copy
from typing import ClassVar

import torch
from torch import Tensor

from o2o_lightning.errors import UserError
from o2o_lightning.replay.manifest import Manifest
from o2o_lightning.replay.table import Layout, Table


class TransitionStore(Table):
    """Transitions in time order: actions in ``[-1, 1]``, rewards raw.

    A row whose successor is unknown carries its own observation as ``("next", "observation")``. If that row
    bootstraps, it is left out of ``td_rows``: it counts for returns, and never for TD learning.

    Args:
        matrix: the rows ``[N, W]``.
        td_rows: ``[M]`` int64, ascending, or None where every row is usable.
        episodes: ``[E, 2]`` int64, start and stop of each episode's rows.
        complete: ``[E]`` bool, false where the recording stopped before the episode did.
        manifest: provenance and statistics.
    """

    shared_rows: ClassVar[bool] = True

    def __init__(
        self, matrix: Tensor, td_rows: Tensor | None, episodes: Tensor, complete: Tensor, manifest: Manifest
    ) -> None:
        super().__init__(Layout.of_transitions(manifest.observation_dim, manifest.action_dim), matrix)
        self.td_rows, self.episodes, self.complete, self.manifest = td_rows, episodes, complete, manifest
        self._own_td_rows = td_rows
        self._all_td_rows: tuple[Tensor | None] | None = None  # while some of them are held out

    @property
    def td_count(self) -> int:
        """``M``, the number of rows usable for TD learning."""
        return len(self) if self.td_rows is None else len(self.td_rows)

    @property
    def known(self) -> Tensor:
        """``[N]`` bool, whether a row is usable for TD learning."""
        return torch.ones(len(self), dtype=torch.bool) if self.td_rows is None else self._mask(self.td_rows)

    def shared(self) -> "TransitionStore":
        """The same rows in the same memory; what a phase changes besides them is the result's own."""
        other = copy.copy(self)
        other.layout, other.mirror = copy.copy(self.layout), None
        return other

    def restore(self) -> None:
        """Takes back what a phase has changed: caches go, and the usable rows are those of the dataset."""
        self.caches, self.mirror = None, None
        self.td_rows, self._all_td_rows = self._own_td_rows, None

    def hold_out(self, share: float, learn: bool = False) -> Tensor:
        """Usable rows (int64, ascending) of a fixed random ``share`` of the episodes, to measure on.

        They are drawn no more until :meth:`restore`, unless ``learn``.
        """
        self._take_back()
        chosen = self._mask(held_out_rows(self.episodes, share))
        usable = torch.arange(len(self)) if self.td_rows is None else self.td_rows
        held = chosen[usable]
        if not held.any() or held.all():  # a dataset of next to nothing
            return usable
        if not learn:
            self._all_td_rows, self.td_rows = (self.td_rows,), usable[~held]
        return usable[held]

    def _take_back(self) -> None:
        if self._all_td_rows is not None:
            (self.td_rows,), self._all_td_rows = self._all_td_rows, None

    def episode_returns(self) -> Tensor:
        """Undiscounted return of each episode, ``[E]`` float64, incomplete ones included."""
        return episode_sums(self["reward"], self.episodes)

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
        mask = self._mask(rows_of(self.episodes[candidates[order[:count]]]))
        if td_only and self.td_rows is not None:
            mask &= self._mask(self.td_rows)
        return mask.nonzero().squeeze(-1)

    def _mask(self, rows: Tensor) -> Tensor:
        mask = torch.zeros(len(self), dtype=torch.bool)
        mask[rows] = True
        return mask


def rows_of(episodes: Tensor) -> Tensor:
    """Rows (int64) of some episodes ``[…, 2]``, one after the other."""
    none = torch.empty(0, dtype=torch.int64)
    return torch.cat([none, *(torch.arange(start, stop) for start, stop in episodes.tolist())])


def episode_sums(values: Tensor, episodes: Tensor) -> Tensor:
    """Sum of ``values`` ``[N]`` over each episode's rows, ``[E]`` float64; ``episodes`` ``[E, 2]`` cover all rows."""
    return torch.zeros(len(episodes), dtype=torch.float64).index_add_(0, owners(episodes), values.double())


def owners(episodes: Tensor) -> Tensor:
    """The number of each row's episode, ``[N]`` int64; ``episodes`` ``[E, 2]`` cover all rows."""
    return torch.repeat_interleave(torch.arange(len(episodes)), episodes[:, 1] - episodes[:, 0])


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
    return rows_of(episodes[order[:count].sort().values])
