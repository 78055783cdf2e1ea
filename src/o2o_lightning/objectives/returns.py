"""Returns-to-go of rows in time order."""

from __future__ import annotations

import torch
from torch import Tensor

from o2o_lightning.blocks import blocks

BLOCK = 1_000_000


def discounted_returns(reward: Tensor, end: Tensor, discount: float) -> Tensor:
    r"""Discounted return from each row to its episode's end, :math:`G_t = r_t + \gamma (1 - e_t) G_{t+1}`.

    Args: ``reward`` ``[N]``; ``end`` e ``[N]`` bool, true of an episode's last row. Returns ``[N]`` float32.
    """
    returns = torch.empty(len(reward), dtype=torch.float32)
    running = 0.0
    # float64 in a plain loop: the recursion is sequential, and at 10M rows this still takes seconds, once
    for block in reversed(list(blocks(len(reward), BLOCK))):
        values = reward[block].double().tolist()
        ends = end[block].tolist()
        for row in range(len(values) - 1, -1, -1):
            running = values[row] + (0.0 if ends[row] else discount * running)
            values[row] = running
        returns[block] = torch.tensor(values, dtype=torch.float32)
    return returns
