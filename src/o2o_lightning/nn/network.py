"""What every network is."""

from __future__ import annotations

from typing import Any

from torch import nn


class Network(nn.Module):
    """A module whose call is its ``forward`` and nothing else.

    torch's own call asks for hooks of several kinds first. Between matrix products that have swept the processor's
    caches that takes as long as a small product, and an update of TD3 makes a dozen such calls.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "forward" in vars(cls):
            cls.__call__ = cls.forward  # type: ignore[method-assign]
