"""The DataModule of the clone phase: a dataset's states, some episodes of it held out."""

from __future__ import annotations

from typing import Any

import torch

from o2o_lightning.data.module import OfflineData
from o2o_lightning.errors import UserError
from o2o_lightning.replay.store import held_out_rows


class CloneData(OfflineData):
    """As :class:`OfflineData`, but batches come from every state of the episodes that are not held out.

    Args:
        held_out: share of the episodes on whose states the clone is judged; the last rows where there is one episode.
        kwargs: as in :class:`OfflineData`; rewards and cadences play no part here.
    """

    def __init__(self, held_out: float = 0.1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0.0 < held_out < 1.0:
            raise UserError(f"--data.held_out {held_out}: a share between 0 and 1 is needed.")
        self.held_out = held_out
        self.held_out_rows = torch.empty(0, dtype=torch.int64)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if self.store is None:
            raise UserError("no dataset: a policy is cloned on a dataset's states. Pass --data.dataset.")
        self.held_out_rows = held_out_rows(self.store.episodes, self.held_out)
        rest = torch.ones(len(self.store), dtype=torch.bool)
        rest[self.held_out_rows] = False
        self.store.td_rows = rest.nonzero().squeeze(-1)  # states need no successor
