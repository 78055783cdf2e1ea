"""A second process that answers requests, and does not outlive the run that it is for."""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any

from o2o_lightning import launch
from o2o_lightning.errors import Failure, UserError

REQUESTS = (signal.SIGINT, signal.SIGTERM)  # to stop in good order


class Child:
    """A process that ``serve`` is run in, with its end of :attr:`connection` and ``given``: all picklable.

    Args:
        name: what it does, for messages and process lists.
        advice: what to do where it has ended by itself.
    """

    def __init__(self, serve: Callable[..., None], *given: Any, name: str, advice: str) -> None:
        self.name, self.advice = name, advice
        # not a fork: a process with threads, or with CUDA, must not be copied
        context = multiprocessing.get_context("spawn")
        # and no daemon, which may have no processes of its own: simulators have
        self.connection: Connection[Any, Any]
        self.connection, other = context.Pipe()
        self.process: Any = context.Process(target=_live, args=(serve, other, *given), name=f"o2o {name}")
        with _deaf_children():
            self.process.start()
        atexit.register(self.close)  # Python's own end of it is a signal that it does not hear
        other.close()

    def answer(self) -> Any:
        """What it says next.

        Raises:
            Failure: it has ended.
        """
        try:
            return self.connection.recv()
        except (EOFError, OSError) as error:
            raise self.ended() from error

    def ended(self) -> Failure:
        """What is said of a process that has ended by itself."""
        self.process.join(5)
        code, guard = self.process.exitcode, 'if __name__ == "__main__":'
        why = {-9: "; often a lack of memory", 1: f"; does a script begin anew over there, without `{guard}`?"}
        return Failure(
            f"the {self.name} process ended unexpectedly (exit code {code}{why.get(code, '')}). {self.advice}"
        )

    def close(self, patience: float = 0.0) -> None:
        """Ends the process: it has so many seconds to end in good order, whatever it is doing."""
        atexit.unregister(self.close)
        self.connection.close()
        self.process.join(patience)
        self.process.kill()
        self.process.join()


Told = tuple[str, str, str]  # the kind of an error, what it says, and where it was


def told(error: Exception) -> Told:
    """An error as another process can be told of it."""
    return type(error).__name__, str(error), traceback.format_exc()


def retold(error: Told) -> Exception:
    """The inverse: one of this package's kinds, or one of that name."""
    kind, text, trace = error
    own: dict[str, type[Exception]] = {one.__name__: one for one in (UserError, Failure)}
    found = own.get(kind, type(kind, (Exception,), {}))(text)
    found.__cause__ = RuntimeError(f"over there:\n{trace}")
    return found


@contextlib.contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes that are started hear neither SIGINT nor SIGTERM: they reach a whole job, and training decides.

    From their first moment: to import what they need takes seconds. This process hears of them at the end.
    """
    resource_tracker.ensure_running()  # or it is started meanwhile, and takes the mask off
    before = signal.pthread_sigmask(signal.SIG_BLOCK, REQUESTS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _live(serve: Callable[..., None], *given: Any) -> None:
    launch.SPEAKS = False  # training has said what there is to say of an environment
    if training := multiprocessing.parent_process():
        for number in REQUESTS:  # unheard, and no mask: what it starts itself would inherit that
            signal.signal(number, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, REQUESTS)
        threading.Thread(target=_end_with, args=(training,), daemon=True).start()
    with contextlib.suppress(EOFError, OSError):  # training has ended, however it did
        serve(*given)


def _end_with(training: Any) -> None:
    training.join()
    os._exit(1)  # whatever the process is doing: nobody waits for it
