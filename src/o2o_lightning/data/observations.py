"""The DataModule of `o2o validate`, `test` and `predict`: one evaluation, or a dataset's observations in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from o2o_lightning.data.module import OfflineData
from o2o_lightning.errors import UserError


class OneByOne:
    """A loader over ready items; Lightning would take a plain list for several loaders."""

    def __init__(self, items: Sequence[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)


class EvaluationData(OfflineData):
    """As :class:`OfflineData`; the dataset may be absent where only the environment is needed."""

    def val_dataloader(self) -> OneByOne:
        return OneByOne([0])  # one evaluation; the episodes are the evaluator's

    def test_dataloader(self) -> OneByOne:
        return OneByOne([0])

    def predict_dataloader(self) -> OneByOne:
        if self.store is None:
            raise UserError("no dataset: `o2o predict` acts on one's observations. Pass --data.dataset.")
        return OneByOne([self.store.gather(torch.arange(part.start, part.stop)) for part in self.blocks()])
