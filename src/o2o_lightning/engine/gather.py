"""How batches are made of what was drawn for them, of one seed or of several as one."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from tensordict import TensorDictBase

from o2o_lightning.methods.method import Batch


class Gather:
    """Makes batches of what was drawn; here, that are the batches themselves."""

    def __call__(self, drawn: Any) -> Iterable[Batch]:
        """The batches of one seed."""
        return drawn  # type: ignore[no-any-return]

    def of_all(self, gathers: Sequence["Gather"], drawn: Sequence[Any]) -> Iterator[Batch]:
        """Those of several seeds, which each have ``gathers`` of this kind: ``[S, …]``."""
        for batches in zip(*(own(part) for own, part in zip(gathers, drawn, strict=True)), strict=True):
            yield side_by_side(batches)


def side_by_side(batches: Sequence[Batch]) -> Batch:
    """Those of all seeds as one."""
    each = [dict(batch.items(True, True) if isinstance(batch, TensorDictBase) else batch) for batch in batches]
    return {key: torch.stack([one[key] for one in each]) for key in each[0]}
