"""Evaluations in a second process: the same episodes, while training goes on."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch

from o2o_lightning.child import Child, retold, told
from o2o_lightning.envs.episodes import Evaluation, Evaluator, Player
from o2o_lightning.envs.snapshot import opened, stored
from o2o_lightning.errors import Failure, UserError
from o2o_lightning.nn import onednn
from o2o_lightning.nn.actor import Policy
from o2o_lightning.nn.actors import build_policy
from o2o_lightning.nn.normalizer import Normalizer
from o2o_lightning.policies.history import player_of

ADVICE = (
    "`o2o resume RUN_DIR` goes on from the last checkpoint; without --data.eval_async and --data.env_process there is "
    "no such process."
)


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
        self._child: Child | None = None

    def submit(self, policy: Snapshot, make: Callable[[], Evaluator] | None = None) -> None:
        """Begins an evaluation; :meth:`result` must be asked for before the next.

        ``make`` makes an evaluator for this one alone.
        """
        if self._child is None:
            self._child = Child(serve, self.make, arithmetic(), name="evaluation", advice=ADVICE)
        # in a thread: while the other process starts, nobody takes what is sent
        threading.Thread(
            target=_send, args=(self._child.connection, (stored(asdict(policy)), make)), daemon=True
        ).start()

    def result(self) -> Evaluation:
        """Waits for the evaluation that was submitted.

        Raises:
            Failure: its environment failed, or the process ended.
        """
        assert self._child is not None
        error, answer = self._child.answer()
        if error is not None:
            failure = retold(error)
            if isinstance(failure, UserError):
                raise failure
            said = f"an evaluation raised {type(failure).__name__}: {failure}. See the policy's checkpoint."
            raise Failure(said) from failure
        return Evaluation(*answer)

    def close(self) -> None:
        """Ends the process, whatever it is doing."""
        if self._child is not None:
            self._child.close()
            self._child = None


def _send(connection: Connection[Any, Any], content: Any) -> None:
    with contextlib.suppress(OSError):  # a process that has ended is told of where its result is asked for
        connection.send(content)


class Arithmetic(NamedTuple):
    """What the last bits of a product depend on."""

    threads: int
    onednn: tuple[bool, ...]
    precision: str


def arithmetic() -> Arithmetic:
    """This process's."""
    return Arithmetic(torch.get_num_threads(), tuple(onednn.ONEDNN), torch.get_float32_matmul_precision())


def serve(connection: Connection[Any, Any], make: Callable[[], Evaluator], computed: Arithmetic) -> None:
    """Answers with an error, None for none, and an evaluation, until nobody asks any more."""
    torch.set_num_threads(computed.threads)
    torch.set_float32_matmul_precision(computed.precision)
    onednn.ONEDNN = onednn.Onednn(*computed.onednn)
    usual: Evaluator | None = None
    while True:
        content, other = connection.recv()
        try:
            evaluator = other() if other else usual or make()
            usual = usual if other else evaluator
            policy = Snapshot(**opened(content))
            found = evaluator.run(policy.player())
            connection.send((None, (found.returns, found.lengths, found.score)))
        except Exception as error:
            connection.send((told(error), None))
