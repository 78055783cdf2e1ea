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


def cut_returns(
    reward: Tensor, terminated: Tensor, truncated: Tensor, known: Tensor, discount: float
) -> tuple[Tensor, Tensor]:
    r"""What is known of each row's return, and the weight of V where its episode's recording was cut.

    :math:`G_t + w_t V(s_c)`: an episode that did not terminate would have gone on from :math:`s_c`, the last state that
    is known of it: the last row's successor, or the row's own state, and then without its reward, where ``known`` is
    false of the row. :math:`w_t = \gamma^{c - t}`, and 0 where the episode terminated.

    Args: all ``[N]``, of rows in time order. Returns both ``[N]`` float32.
    """
    end = terminated | truncated
    cut = end & ~terminated
    cut[-1] = not bool(terminated[-1])
    returns = discounted_returns(torch.where(cut & ~known, 0.0, reward), end, discount)
    return returns, discounted_returns(torch.where(known, discount, 1.0) * cut, end, discount)


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
