"""Returns-to-go of rows in time order."""

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


def calibration_returns(
    reward: Tensor, end: Tensor, discount: float, failure_reward: float | None = None, failure_by: str = "all"
) -> Tensor:
    r"""Cal-QL's lower bound G of each row's value: the return seen from it, 0 behind an episode's last row.

    In a sparse task an episode without success would have gone on for ever: then G is :math:`r_{min}/(1-\gamma)` on all
    of its rows. Rows behind the last end belong to an episode whose return nobody knows: their G is −∞, no bound.

    Args: ``reward`` ``[N]``; ``end`` ``[N]`` bool; ``failure_reward`` r_min, None for dense rewards; ``failure_by``:
    ``all``, an episode has failed if all of its rewards are r_min; ``last``, if the last one is. Returns ``[N]``.
    """
    returns = discounted_returns(reward, end, discount)
    owner = end.long().cumsum(0) - end.long()  # the number of each row's episode
    episodes = int(end.sum())
    if failure_reward is not None:
        success = reward != failure_reward
        if failure_by == "last":
            success = success & end
        succeeded = torch.zeros(episodes + 1, dtype=torch.bool).index_put_((owner[success],), torch.tensor(True))
        returns = torch.where(succeeded[owner], returns, failure_reward / (1.0 - discount))
    return torch.where(owner < episodes, returns, -torch.inf)
