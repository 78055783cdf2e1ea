"""The DataModule of the clone phase: a dataset's states, some episodes of it held out."""

from dataclasses import dataclass

import torch

from o2o_lightning.data.module import OfflineData
from o2o_lightning.errors import UserError
from o2o_lightning.replay.store import held_out_rows


@dataclass(eq=False, repr=False)
class CloneData(OfflineData):
    """As :class:`OfflineData`, but batches come from every state of the episodes that are not held out.

    Rewards and cadences play no part here.

    Args:
        held_out: share of the episodes on whose states the clone is judged; the last rows where there is one episode.
    """

    held_out: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.held_out < 1.0:
            raise UserError(f"--data.held_out {self.held_out}: a share between 0 and 1 is needed.")
        self.held_out_rows = torch.empty(0, dtype=torch.int64)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        store = self.needed("a policy is cloned on a dataset's states")
        self.held_out_rows = held_out_rows(store.episodes, self.held_out)
        rest = torch.ones(len(store), dtype=torch.bool)
        rest[self.held_out_rows] = False
        store.td_rows = rest.nonzero().squeeze(-1)  # states need no successor
