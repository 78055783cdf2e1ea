"""A conditional variational auto-encoder of actions."""

from collections.abc import Sequence

import torch
from torch import Tensor

from o2o_lightning.nn.mlp import MLP, Network

LOG_STD_MIN, LOG_STD_MAX = -4.0, 15.0


class ActionVAE(Network):
    """What actions the data has in a state: encoder of ``(s, a)`` to a latent of 2A, decoder back to ``a``."""

    def __init__(self, observation_dim: int, action_dim: int, hidden: Sequence[int] = (750, 750)) -> None:
        super().__init__()
        self.latent = 2 * action_dim
        self.encoder = MLP(observation_dim + action_dim, hidden, 2 * self.latent)
        self.decoder = MLP(observation_dim + self.latent, hidden, action_dim)

    def forward(self, observation: Tensor, action: Tensor, noise: Tensor, frozen: bool = False) -> Tensor:
        r"""Negative evidence bound ``[B]``, by one latent made of standard normal ``noise`` ``[B, 2A]``.

        :math:`\mathrm{mean}_A (\hat a - a)^2 + \tfrac12\,\mathrm{mean}_{2A}\,\mathrm{KL}`; ``frozen`` treats the
        weights as constants.
        """
        moments = self.encoder(torch.cat((observation, action), -1), frozen)
        mean, log_std = moments[..., : self.latent], moments[..., self.latent :].clamp(LOG_STD_MIN, LOG_STD_MAX)
        latent = mean + log_std.exp() * noise
        decoded = torch.tanh(self.decoder(torch.cat((observation, latent), -1), frozen))
        divergence = -0.5 * (1.0 + 2.0 * log_std - mean.square() - (2.0 * log_std).exp())
        bound: Tensor = (decoded - action).square().mean(-1) + 0.5 * divergence.mean(-1)
        return bound
