"""What reaches the terminal: no control sequence of a file's own, and no end of a run because nobody reads any more."""

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

from o2o_lightning.errors import CONTROL, visible

# What progress bars and tables are drawn with: colours, and moves within what is theirs
_DRAWING = re.compile(rf"(\x1b\[[0-9;?]*[ABGKmhl])|{CONTROL.pattern}")


class Stream:
    """``stream``, called ``name``, of which only texts and what draws on a terminal are written.

    A reader that has gone (``o2o … | head``) ends nothing. What standard output has no room for is an error.
    """

    def __init__(self, stream: Any, name: str) -> None:
        self._stream, self._name = stream, name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._stream, attribute)

    def write(self, text: str) -> int:
        """As a text stream's; where it is no terminal, colours are left out."""
        with self._reader_may_go():
            drawn = self._stream.isatty()
            shown = _DRAWING.sub(lambda found: (found[1] if drawn else "") if found[1] else visible(found[0]), text)
            try:
                self._stream.write(shown)
            except UnicodeEncodeError:
                encoding = self._stream.encoding
                self._stream.write(shown.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """As a text stream's."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """As a text stream's."""
        with self._reader_may_go():
            self._stream.flush()

    @contextlib.contextmanager
    def _reader_may_go(self) -> Iterator[None]:
        try:
            yield
        except ValueError:  # it has been closed
            return
        except OSError as error:
            with contextlib.suppress(OSError, ValueError):  # or what is left would be tried again at exit
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            if self._name == "standard output" and not isinstance(error, BrokenPipeError):
                raise OSError(error.errno, error.strerror, self._name) from error


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Standard output and error as :class:`Stream`, also where they were closed."""
    for descriptor in range(3):  # a file that is opened must not become standard error, which libraries write to
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    out, error = (stream or open(os.devnull, "w") for stream in before)  # noqa: SIM115, as long as the process
    sys.stdout, sys.stderr = Stream(out, "standard output"), Stream(error, "standard error")
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
