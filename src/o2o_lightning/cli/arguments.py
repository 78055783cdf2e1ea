"""argparse as sub-commands use it: what is wrong is one line, with what was probably meant."""

import argparse
import difflib
import re
from collections.abc import Iterator
from typing import Any, NoReturn

from o2o_lightning.errors import UserError

_WRONG = re.compile(r"invalid choice: '([^']*)'|unrecognized arguments: (--[\w.]+)")


class Parser(argparse.ArgumentParser):
    """A parser, and its sub-commands', that takes no option for another which begins like it."""

    def __init__(self, prog: str | None = None, **options: Any) -> None:
        super().__init__(prog, **{**options, "allow_abbrev": False})

    def error(self, message: str) -> NoReturn:
        """Refuses what was typed.

        Raises:
            UserError: always.
        """
        wrong = _WRONG.search(message)
        close = difflib.get_close_matches(wrong[1] or wrong[2], [*_words(self)], 1) if wrong else []
        meant = f" Did you mean '{close[0]}'?" if close else ""
        raise UserError(f"{self.prog}: {message}.{meant} See `{self.prog} -h`.")


def _words(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Options and choices of a parser and of its sub-commands."""
    for action in parser._actions:
        yield from action.option_strings
        yield from map(str, action.choices or ())
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _words(command)
