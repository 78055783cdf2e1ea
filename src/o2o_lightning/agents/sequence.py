"""The networks of a sequence model."""

from __future__ import annotations

from torch import nn

from o2o_lightning.nn.decision_transformer import SequencePolicy


class SequenceAgent(nn.Module):
    """A policy with a memory, and nothing else: it has no critic, and what is anchored to is its clone."""

    def __init__(self, actor: SequencePolicy) -> None:
        super().__init__()
        self.actor = actor
