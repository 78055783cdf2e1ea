"""The exceptions that reach a user as a single line instead of a traceback."""

import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

# C0 and C1 but for tab, line feed and carriage return, and what turns the direction of reading
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class UserError(Exception):
    """Bad input: what is wrong, where, and what to do, in one line.

    The command line prints ``o2o: <message>`` and exits with :attr:`exit_code`.
    """

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(visible(" ".join(message.split())))


class Failure(UserError):
    """What was asked for is right, and the world failed: a full disk, a simulator that crashes, a diverged loss."""

    exit_code = 1


class Lost(Failure):
    """Another process of the run has failed, and says itself why."""


class Interrupted(UserError):
    """The run was asked to stop, and did so in good order; ``exit_code`` is 128 + the signal, as shells have it."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signum


# What reading damaged bytes raises: an unpickler trips over them anywhere, a zip, HDF5 and JSON in ways of their own.
DAMAGED = (
    pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, RuntimeError,
    LookupError, TypeError, AttributeError, AssertionError,
)  # fmt: skip


def visible(text: str) -> str:
    """``text`` with its control characters spelled out: a terminal would obey those that a file has brought."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


@contextmanager
def refusing(fails: str, advice: str, kind: type[UserError] = UserError) -> Iterator[None]:
    """Says that reading ``fails``, why, and what to do: on damaged or foreign bytes a reader raises just anything."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise kind(f"{fails} ({reason(error)}). {advice}") from error


def reason(error: BaseException) -> str:
    """The first line of what ``error`` says, its kind where it says nothing."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def at_least(option: str, value: float, least: float) -> None:
    """Refuses a value below ``least``, naming the option that it came by."""
    if not value >= least:
        raise UserError(f"{option} {value:g}: it must be at least {least:g}.")


def check_subset(subset: int | None, critics: int, more: str = "Ask for fewer.") -> None:
    """Refuses fewer drawn critics than one, and more than there are: ``more`` says what to do."""
    if subset is not None:
        at_least("--model.subset", subset, 1)
        if subset > critics:
            raise UserError(f"--model.subset {subset}: there are {critics} critics. {more}")
