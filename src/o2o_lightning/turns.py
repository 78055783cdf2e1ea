"""Threads that take turns: several runs in one process, each as if it were alone."""

import os
import random
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

SEED_VARIABLES = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")


class Streams:
    """The global random streams of one thread, and the seed that it was given; what another draws does not move them.

    Torch's and Python's generators are copied; numpy's is swapped, which takes less.
    """

    def __init__(self) -> None:
        self.torch = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
        self.python = random.getstate()
        self.numpy = np.random.get_bit_generator()  # type: ignore[attr-defined]
        self.seed = {name: os.environ.get(name) for name in SEED_VARIABLES}

    def restore(self) -> None:
        """Makes them the process's own again."""
        torch.set_rng_state(self.torch)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)
        np.random.set_bit_generator(self.numpy)  # type: ignore[attr-defined]
        random.setstate(self.python)
        for name, value in self.seed.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


class Turns:
    """Threads of which exactly one runs at any moment, until it hands over: they share memory without locks or races.

    Who runs when depends on what the threads do and never on how long it takes, so that a run can be repeated.

    Args:
        answer: takes what waiting threads have asked for, by their places, answers some and removes those.
    """

    def __init__(self, answer: Callable[[dict[int, Any]], None]) -> None:
        self._answer = answer
        self._batons: dict[int, threading.Semaphore] = {}
        self._living: list[int] = []
        self._waiting: dict[int, Any] = {}

    def run(self, jobs: Mapping[int, Callable[[], None]]) -> dict[int, BaseException]:
        """Runs all to their ends; what those that failed have raised, by their places."""
        errors: dict[int, BaseException] = {}
        self._living, own = [*jobs], Streams()
        self._batons = {place: threading.Semaphore(0) for place in jobs}
        threads = [
            threading.Thread(target=self._live, args=(place, job, errors), name=f"o2o {place}", daemon=True)
            for place, job in jobs.items()
        ]
        for thread in threads:
            thread.start()
        self._pass_on()
        for thread in threads:
            thread.join()  # signals reach the main thread meanwhile
        own.restore()
        return errors

    def meet(self, place: int, request: Any) -> None:
        """Waits until all that live wait here, and then until ``request`` is answered."""
        self._waiting[place] = request
        while place in self._waiting:
            if all(other in self._waiting for other in self._living):
                self._answer(self._waiting)
            else:
                self._hand_over(place)

    def pause(self, place: int) -> None:
        """Lets each of the others that need not wait go on first, until it hands over as well."""
        if any(other not in self._waiting for other in self._living if other != place):
            self._hand_over(place)

    def _hand_over(self, place: int) -> None:
        own = Streams()
        self._pass_on(place)
        self._batons[place].acquire()
        own.restore()

    def _live(self, place: int, job: Callable[[], None], errors: dict[int, BaseException]) -> None:
        self._batons[place].acquire()
        torch.set_num_threads(torch.get_num_threads())  # a thread's own setting begins as the machine's
        np.random.set_bit_generator(np.random.MT19937())  # type: ignore[attr-defined]
        try:
            job()
        except BaseException as error:
            errors[place] = error
        self._living.remove(place)
        self._pass_on(place)

    def _pass_on(self, place: int = -1) -> None:
        """The baton goes to the next after ``place`` that need not wait, else to one that finds the others waiting."""
        ready = [other for other in self._living if other not in self._waiting] or self._living
        if ready:
            self._batons[min(ready, key=lambda other: (other <= place, other))].release()
