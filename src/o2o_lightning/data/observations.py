"""The DataModule of `o2o validate`, `test` and `predict`: one evaluation, or a dataset's observations in order."""

from collections.abc import Iterator

import torch
from tensordict import TensorDictBase

from o2o_lightning.data.module import OfflineData


class EvaluationData(OfflineData):
    """As :class:`OfflineData`; the dataset may be absent where only the environment is needed."""

    def val_dataloader(self) -> range:
        return range(1)  # one evaluation; the episodes are the evaluator's

    def test_dataloader(self) -> range:
        return range(1)

    def predict_dataloader(self) -> Iterator[TensorDictBase]:
        gather = self.needed("`o2o predict` acts on one's observations").gather
        return (gather(torch.arange(part.start, part.stop)) for part in self.blocks())
