"""A second process that answers requests, and does not outlive the run that it is for."""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any

from o2o_lightning.errors import Failure

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
        self.connection: Connection[Any, Any]
        self.connection, other = context.Pipe()
        self.process: Any = context.Process(target=_live, args=(serve, other, *given), daemon=True, name=f"o2o {name}")
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
        return Failure(
            f"the {self.name} process ended unexpectedly (exit code {self.process.exitcode}; -9 is often a lack of "
            f"memory). {self.advice}"
        )

    def close(self) -> None:
        """Ends the process, whatever it is doing."""
        atexit.unregister(self.close)
        self.connection.close()
        self.process.kill()
        self.process.join()


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
    if training := multiprocessing.parent_process():
        threading.Thread(target=_end_with, args=(training,), daemon=True).start()
    with contextlib.suppress(EOFError, OSError):  # training has ended, however it did
        serve(*given)


def _end_with(training: Any) -> None:
    training.join()
    os._exit(1)  # whatever the process is doing: nobody waits for it
