"""The DataModule of sequence models: windows of episodes instead of single transitions."""

from collections.abc import Iterator
from functools import cached_property

import torch
from tensordict import TensorDictBase
from torch import Tensor

from o2o_lightning.data.module import OfflineData
from o2o_lightning.errors import UserError
from o2o_lightning.replay.rewards import RewardMap
from o2o_lightning.replay.store import TransitionStore
from o2o_lightning.replay.windows import Windows


class TrajectoryData(OfflineData):
    """As :class:`OfflineData`, but batches are windows of episodes with their returns-to-go.

    ``batch_size`` counts windows. The phase says how long they are and how returns are scaled, since acting needs both.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rewards != RewardMap() or self.reward_range:
            raise UserError(
                "--data.reward_scale, reward_shift, reward_range: a sequence model is asked for returns as the "
                "environment counts them. Pass --model.return_scale."
            )

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if not bool(self.needed("a sequence model learns from one").complete.any()):
            raise UserError(
                f"dataset {self.dataset}: none of its episodes was recorded to its end, so that returns-to-go are "
                "unknown. Pass another dataset, or another offline algorithm."
            )

    @cached_property
    def windows(self) -> Windows:
        """What training draws from, as long as the method says."""
        method = self.module.method
        return Windows(self.needed("windows are drawn of one"), method.context, method.return_scale)

    def numbers(self, shape: tuple[int, int]) -> Tensor:
        """First rows of K times B windows, ``[K, B]``."""
        return self.windows.sample_rows(shape, self.rows)

    def batches(self, numbers: Tensor) -> Iterator[TensorDictBase]:
        yield from self.prepare(self.windows.gather(numbers), self.module.device).unbind(0)

    def keep_near(self, device: torch.device) -> bool:
        return False  # where an episode begins and ends is looked up by the host

    def normalized_rows(self, store: TransitionStore) -> None:
        """All, as the Decision Transformers have it."""

    def prepare(self, batch: TensorDictBase, device: torch.device) -> TensorDictBase:
        assert self.normalizer is not None
        batch = batch.to(device)
        batch["observation"] = self.normalizer.to(device)(batch["observation"])
        return batch

    def longest(self) -> int:
        """Steps of the longest episode that there is, or can be."""
        recorded = int(self.needed("its episodes are measured").episodes.diff().max())
        return max(recorded, (self.env.horizon if self.env else None) or 0)
