"""Long columns a block at a time: a memory-mapped one is never in memory as a whole."""

from collections.abc import Iterator

BLOCK_ROWS = 65_536


def blocks(rows: int, size: int = BLOCK_ROWS) -> Iterator[slice]:
    """Row slices that cover ``range(rows)`` in order, each of at most ``size`` rows."""
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))
