"""Lines that the user should read once, from places that have no command line at hand."""

from __future__ import annotations

import functools
import sys

from o2o_lightning.launch import first_process


@functools.cache
def note_once(line: str) -> None:
    """``o2o: <line>`` on stderr, once a process, and of a run's processes from the first one only."""
    if first_process():
        print(f"o2o: {line}", file=sys.stderr)
