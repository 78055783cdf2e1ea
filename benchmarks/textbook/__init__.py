"""The same updates as a textbook, or a single-file library, would write them: what the package is timed against.

One ``nn.Sequential`` a network and one default ``torch.optim.Adam`` for each, a separate forward pass for each term,
autograd through critics and reference policy in the policy's loss, target networks moved parameter by parameter, one
batch sampled from tensors before each update, and its losses read as numbers after it. Nothing is done badly on
purpose: targets are formed under ``no_grad``, and the mathematics is the package's, defaults included.
"""

from textbook.gaussian import IQL, PPO, PPOReevaluation
from textbook.parts import Mixed, Replay
from textbook.sac import CQL, SAC, SACAlignment, SACReevaluation
from textbook.td3 import TD3, TD3BC, TD3Alignment, TD3Reevaluation

__all__ = [
    "CQL",
    "IQL",
    "PPO",
    "SAC",
    "TD3",
    "TD3BC",
    "Mixed",
    "PPOReevaluation",
    "Replay",
    "SACAlignment",
    "SACReevaluation",
    "TD3Alignment",
    "TD3Reevaluation",
]
