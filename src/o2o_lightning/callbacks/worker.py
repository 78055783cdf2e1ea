"""Evaluations in a second process: the same episodes, while training goes on."""

from __future__ import annotations

import atexit
import contextlib
import io
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any

import torch

from o2o_lightning.envs.episodes import Evaluation, Evaluator, Player
from o2o_lightning.errors import Failure, UserError
from o2o_lightning.nn.actor import Policy
from o2o_lightning.nn.actors import build_policy
from o2o_lightning.nn.normalizer import Normalizer
from o2o_lightning.policies.history import player_of

REQUESTS = (signal.SIGINT, signal.SIGTERM)  # to stop in good order


@dataclass(frozen=True)
class Snapshot:
    """A policy at one moment, as primitives and arrays: what another process or a checkpoint can hold."""

    policy: dict[str, Any]
    weights: dict[str, torch.Tensor]
    normalizer: dict[str, Any]

    @staticmethod
    def of(policy: Policy, normalizer: Normalizer) -> Snapshot:
        """Copies of ``policy``'s weights and of the constants before it."""
        weights = {name: value.detach().cpu().clone() for name, value in policy.state_dict().items()}
        return Snapshot(policy.spec.to_dict(), weights, normalizer.to("cpu").state())

    def player(self) -> Player:
        """The policy, ready for episodes."""
        policy = build_policy(self.policy)
        policy.load_state_dict(self.weights)
        return player_of(policy, Normalizer.from_state(self.normalizer))


class EvaluationWorker:
    """A process with environments of its own, made when the first policy is submitted; one evaluation at a time.

    ``make`` makes its evaluator: a picklable function, called over there.
    """

    def __init__(self, make: Callable[[], Evaluator]) -> None:
        self.make = make
        self._connection: Connection[Any, Any] | None = None
        self._process: Any = None

    def submit(self, policy: Snapshot) -> None:
        """Begins an evaluation; :meth:`result` must be asked for before the next."""
        if self._connection is None:
            # not a fork: a process with threads, or with CUDA, must not be copied
            context = multiprocessing.get_context("spawn")
            self._connection, other = context.Pipe()
            arguments = (other, self.make, torch.get_num_threads())
            self._process = context.Process(target=_serve, args=arguments, daemon=True, name="o2o evaluation")
            with _deaf_children():
                self._process.start()
            atexit.register(self.close)  # Python's own end of it is a signal that it does not hear
            other.close()
        content = io.BytesIO()
        torch.save(asdict(policy), content)
        # in a thread: while the other process starts, nobody takes what is sent
        threading.Thread(target=_send, args=(self._connection, content.getvalue()), daemon=True).start()

    def result(self) -> Evaluation:
        """Waits for the evaluation that was submitted.

        Raises:
            Failure: its environment failed, or the process ended.
        """
        assert self._connection is not None
        try:
            answer = self._connection.recv()
        except (EOFError, OSError) as error:
            self._process.join(5)
            raise Failure(
                f"the evaluation process ended unexpectedly (exit code {self._process.exitcode}; -9 is often a lack of "
                "memory). `o2o resume RUN_DIR` goes on from the last checkpoint; without --data.eval_async evaluations "
                "need no second process."
            ) from error
        if isinstance(answer, str):
            raise Failure(answer)
        return Evaluation(*answer)

    def close(self) -> None:
        """Ends the process, whatever it is doing."""
        if self._connection is not None:
            atexit.unregister(self.close)
            self._connection.close()
            self._process.kill()
            self._process.join()
            self._connection = self._process = None


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


def _send(connection: Connection[Any, Any], content: bytes) -> None:
    with contextlib.suppress(OSError):  # a process that has ended is told of where its result is asked for
        connection.send_bytes(content)


def _serve(connection: Connection[Any, Any], make: Callable[[], Evaluator], threads: int) -> None:
    if training := multiprocessing.parent_process():
        threading.Thread(target=_end_with, args=(training,), daemon=True).start()
    torch.set_num_threads(threads)  # as over there: another number may round differently
    evaluator = None
    while True:
        try:
            content = connection.recv_bytes()
        except (EOFError, OSError):  # training has ended, however it did
            return
        try:
            evaluator = evaluator or make()
            policy = Snapshot(**torch.load(io.BytesIO(content), weights_only=True))
            found = evaluator.run(policy.player())
            connection.send((found.returns, found.lengths, found.score))
        except UserError as error:
            connection.send(str(error))
        except Exception as error:
            connection.send(f"an evaluation raised {type(error).__name__}: {error}. See the policy's checkpoint.")


def _end_with(training: Any) -> None:
    training.join()
    os._exit(1)  # whatever the environment is doing: nobody waits for it
