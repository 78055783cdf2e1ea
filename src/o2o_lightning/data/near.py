"""Batches of tables that are near the networks: gathered of their rows in a recording, of several seeds at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch

from o2o_lightning.data.module import OfflineData
from o2o_lightning.data.stream import named
from o2o_lightning.engine.gather import Gather
from o2o_lightning.methods.method import Batch
from o2o_lightning.nn.normalizer import Normalizer
from o2o_lightning.replay.table import Table


class NearGather(Gather):
    """Makes the batches of a DataModule, by the numbers of their rows."""

    def __init__(self, data: OfflineData) -> None:
        self.data = data

    def __call__(self, drawn: Any) -> Iterator[Batch]:
        """Of the numbers of many batches at once, or of a list of those of one each."""
        each = drawn if isinstance(drawn, list) else [drawn]
        return (batch for numbers in each for batch in self.data.batches(numbers))

    def of_all(self, gathers: Sequence[Gather], drawn: Sequence[Any]) -> Iterator[Batch]:
        """As there; what a seed would do to its rows is done to those of all, in as many operations."""
        each = [cast(NearGather, gather).data for gather in gathers]
        of_ours = type(self.data).__module__.startswith("o2o_lightning.")  # another's may make batches in its own way
        if not of_ours or any(form_of(data) != form_of(each[0]) for data in each):
            return super().of_all(gathers, drawn)
        lists = drawn if isinstance(drawn[0], list) else [[numbers] for numbers in drawn]
        return (batch for same in zip(*lists, strict=True) for batch in self._batches(each, same))

    def _batches(self, each: Sequence[OfflineData], drawn: Sequence[Any]) -> Iterator[Batch]:
        layout, device = self.data.buffer.layout, self.data.module.device
        rows, *cached = self.data.picked_of_all(each, drawn)
        normalizers = [cast(Normalizer, data.normalizer) for data in each]
        pairs = [data.buffer.layout.constants(own, device) for data, own in zip(each, normalizers, strict=True)]
        mean, scale = (torch.stack(part).view(-1, 1, 1, layout.width) for part in zip(*pairs, strict=True))
        columns = named(layout.standardize_(rows, mean, scale, normalizers[0].clip), layout, self.data.rewards)
        for part in cached:
            columns |= cast(Table, self.data.needed("it has caches").near.caches).layout.columns(part)
        for parts in zip(*(column.unbind(1) for column in columns.values()), strict=True):
            yield dict(zip(columns, parts, strict=True))


def form_of(data: OfflineData) -> tuple[Any, ...]:
    """What must be alike where rows of several seeds are treated as one: what is where in them, what is made of it."""
    caches = None if data.store is None or data.store.near.caches is None else data.store.near.caches.layout.widths
    clip = None if data.normalizer is None else data.normalizer.clip
    return type(data), data.buffer.layout.widths, caches, data.rewards, clip
