"""Size before trust: what a file may declare, compared with what it holds before anything is allocated."""

SLACK, RATIO = 2**24, 64  # numbers that repeat compress well, but not ten thousand of them into one


def allowed(held: int) -> int:
    """Bytes that a file of ``held`` bytes may declare, or unpack to: 16 MB, and 64 for each of its own."""
    return SLACK + RATIO * held
