"""SIGINT and SIGTERM as requests: the chunk is finished and saved first."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from o2o_lightning.errors import Interrupted

WATCHED = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """Remembers the first SIGINT or SIGTERM; a second one stops at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def watch(self) -> None:
        """Takes the signals over, where Python lets a thread do so."""
        if self._previous or threading.current_thread() is not threading.main_thread():
            return
        for number in WATCHED:
            self._previous[number] = signal.signal(number, self._note)

    def release(self) -> None:
        """Gives them back."""
        for number, handler in self._previous.items():
            if signal.getsignal(number) == self._note:  # else Lightning has already put the program's own back
                signal.signal(number, handler)
        self._previous = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise Interrupted("stopped at once; `o2o resume RUN_DIR` goes on from the last checkpoint.", number)
        self.received = number
