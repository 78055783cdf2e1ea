"""Reward transforms for learning; scores always use raw rewards."""

from dataclasses import dataclass

from torch import Tensor

from o2o_lightning.blocks import blocks
from o2o_lightning.replay.store import TransitionStore
from o2o_lightning.replay.table import TERMINATED

PSEUDO_EPISODE = 1000


@dataclass(frozen=True)
class RewardMap:
    """Affine map of rewards, ``scale·r + shift``: AntMaze's 10r − 5 and r − 1, and scaling by the return range."""

    scale: float = 1.0
    shift: float = 0.0

    def map_(self, reward: Tensor) -> Tensor:
        """``reward``, mapped in place."""
        return reward if self.scale == 1.0 and self.shift == 0.0 else reward.mul_(self.scale).add_(self.shift)

    def __call__(self, reward: Tensor) -> Tensor:
        """``reward`` mapped, a copy."""
        return self.map_(reward.clone())


def return_range_scale(store: TransitionStore) -> float:
    """1000 / (highest − lowest return), CORL's scaling of MuJoCo rewards; 1 where all returns are equal.

    Returns are over pseudo-episodes of usable transitions, cut at a termination or after 1000 of them. Dropped time-out
    rows make true episodes 999 long, so cuts drift relative to them; kept as it is for parity.
    """
    rewards, terminated = store["reward"], store[TERMINATED]
    returns, running, length = [], 0.0, 0
    for block in blocks(store.td_count):
        rows = block if store.td_rows is None else store.td_rows[block]
        for reward, ended in zip(rewards[rows].double().tolist(), terminated[rows].tolist(), strict=True):
            running, length = running + reward, length + 1
            if ended or length == PSEUDO_EPISODE:
                returns.append(running)
                running, length = 0.0, 0
    spread = max(returns, default=0.0) - min(returns, default=0.0)
    return 1000.0 / spread if spread > 0 else 1.0
