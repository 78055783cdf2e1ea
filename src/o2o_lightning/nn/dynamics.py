"""A learned environment: where an action leads, and whether an episode ends there."""

import torch
from torch import Tensor, nn

from o2o_lightning.nn.mlp import MLP, Network


class Dynamics(Network):
    """``count`` networks ``S + A → hidden → S + 1``, SiLU: the change of a normalised state, and the logit of an end.

    A rollout stays with one of them, so that what it does not know differs between rollouts and not within one.
    """

    def __init__(self, observation_dim: int, action_dim: int, hidden: tuple[int, ...], count: int) -> None:
        super().__init__()
        sizes = observation_dim + action_dim, hidden, observation_dim + 1
        self.members = nn.ModuleList(MLP(*sizes, activation="silu") for _ in range(count))

    def forward(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """What each says: next states ``[K, B, S]``, and logits ``[K, B]``."""
        x = torch.cat((observation, action), -1)
        out = torch.stack([member(x) for member in self.members])
        return observation + out[..., :-1], out[..., -1]

    def step(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Next states ``[B, S]``, the rows shared out among the networks in order, and whether each is an end."""
        parts = torch.cat((observation, action), -1).tensor_split(len(self.members))
        out = torch.cat([member(part) for member, part in zip(self.members, parts, strict=True)])
        return observation + out[:, :-1], out[:, -1] > 0
