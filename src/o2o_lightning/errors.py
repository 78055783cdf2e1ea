"""The one exception that reaches a user as a single line instead of a traceback."""

from __future__ import annotations


class UserError(Exception):
    """Bad input: what is wrong, where, and what to do, in one line.

    The command line prints ``o2o: <message>`` and exits with code 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def at_least(option: str, value: float, least: float) -> None:
    """Refuses a value below ``least``, naming the option that it came by."""
    if not value >= least:
        raise UserError(f"{option} {value:g}: it must be at least {least:g}.")
