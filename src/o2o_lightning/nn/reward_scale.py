"""Dynamic reward scaling: rewards in units of the running deviation of the discounted return."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class RewardScale(nn.Module):
    r"""Divides rewards by the running deviation of :math:`R \leftarrow \gamma R + r` (O2PPO on halfcheetah).

    Welford's statistics, with the sum of squares starting at 1 so that the first deviation is 1. They are buffers:
    the re-evaluation gathers them on the dataset, and the online phase goes on with them.
    """

    count: Tensor
    mean: Tensor
    square: Tensor

    def __init__(self, discount: float = 0.99) -> None:
        super().__init__()
        self.discount = discount
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros((), dtype=torch.float64))
        self.register_buffer("square", torch.ones((), dtype=torch.float64))

    def forward(self, reward: Tensor, ended: Tensor, running: Tensor) -> tuple[Tensor, Tensor]:
        """Scales rewards in time order, updating the statistics at each step.

        Args: ``reward`` and ``ended`` (R restarts after it) ``[N, T]`` for N environments; ``running`` ``[N]``, the R
        of the episode under way. Returns scaled rewards ``[N, T]`` and the new ``running``.
        """
        count, mean, square = float(self.count), float(self.mean), float(self.square)
        returns, ends, columns = running.tolist(), ended.bool().T.tolist(), reward.double().T.tolist()
        for column, end in zip(columns, ends, strict=True):
            for i, value in enumerate(column):
                returns[i] = self.discount * returns[i] + value
                count += 1
                before = mean
                mean += (returns[i] - mean) / count
                square += (returns[i] - before) * (returns[i] - mean)
                column[i] = value / (math.sqrt(square / count) + 1e-8)
                if end[i]:
                    returns[i] = 0.0
        for buffer, number in ((self.count, count), (self.mean, mean), (self.square, square)):
            buffer.fill_(number)
        scaled = torch.tensor(columns, dtype=reward.dtype, device=reward.device).T.contiguous()
        return scaled, torch.tensor(returns, dtype=running.dtype, device=running.device)
