"""Observations in units of constants fitted once on the dataset, and rewards in those of running statistics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from o2o_lightning.blocks import blocks


@dataclass
class Normalizer:
    r"""Maps an observation to :math:`(s - \mu) / (\sigma + \epsilon)`, the same offline and online.

    An imported policy may have learned with clipped values: then the clip is part of it.

    Args:
        mean: ``[S]`` float32.
        std: ``[S]`` float32, population standard deviation.
        eps: added to the standard deviation, so that a constant column stays finite.
        clip: largest magnitude of a normalised value; None for any.
    """

    mean: Tensor
    std: Tensor
    eps: float = 1e-3
    clip: float | None = None
    _scale: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._scale = self.std + self.eps

    def __call__(self, observation: Tensor) -> Tensor:
        """Normalises ``[..., S]``."""
        normalized = (observation - self.mean) / self._scale
        return normalized if self.clip is None else normalized.clamp(-self.clip, self.clip)

    def numpy(self, observation: NDArray[np.float32]) -> NDArray[np.float32]:
        """Normalises ``[..., S]`` without torch, for acting in an environment."""
        mean, scale = self._arrays
        normalized: NDArray[np.float32] = (observation - mean) / scale
        return normalized if self.clip is None else np.clip(normalized, -self.clip, self.clip)

    @cached_property
    def _arrays(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Mean and scale; kept, for on a GPU each conversion would wait for the device."""
        return self.mean.cpu().numpy(), self._scale.cpu().numpy()

    def to(self, device: torch.device | str) -> Normalizer:
        """The same constants on another device; itself where they are there already."""
        if self.mean.device == torch.device(device):
            return self
        return Normalizer(self.mean.to(device), self.std.to(device), self.eps, self.clip)

    @classmethod
    def identity(cls, size: int) -> Normalizer:
        """Changes nothing, bit for bit."""
        return cls(torch.zeros(size), torch.ones(size), 0.0)

    @classmethod
    def fit(cls, observations: Tensor, eps: float = 1e-3, chosen: Tensor | None = None) -> Normalizer:
        """Mean and population standard deviation over the rows of ``[N, S]``, or those ``chosen`` ``[M]``.

        Summed in float64 block by block, so that a memory-mapped dataset is never in memory as a whole.
        """
        rows = len(observations) if chosen is None else len(chosen)
        mean = torch.zeros(observations.shape[1], dtype=torch.float64)
        variance = torch.zeros_like(mean)
        for block in blocks(rows):
            mean += observations[block if chosen is None else chosen[block]].double().sum(0) / rows
        for block in blocks(rows):
            values = observations[block if chosen is None else chosen[block]].double()
            variance += (values - mean).square_().sum(0) / rows
        return cls(mean.float(), variance.sqrt().float(), eps)

    def state(self) -> dict[str, Any]:
        """Tensors and numbers, for a checkpoint."""
        return {"mean": self.mean.clone(), "std": self.std.clone(), "eps": self.eps, "clip": self.clip}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Normalizer:
        """Inverse of :meth:`state`."""
        return cls(state["mean"].clone(), state["std"].clone(), float(state["eps"]), state.get("clip"))


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
