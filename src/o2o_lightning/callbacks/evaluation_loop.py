"""When the policy is evaluated, and who hears of it."""

from dataclasses import asdict
from typing import Any

import lightning as L

from o2o_lightning.callbacks.hooks import PhaseCallback
from o2o_lightning.callbacks.worker import EvaluationWorker, Snapshot


class EvaluationLoop(PhaseCallback):
    """Evaluates at the data's cadence on the phase's own clock, at the end, and online at the start too.

    In the background (``--data.eval_async``), the policy of that moment is evaluated while training goes on. Its result
    is recorded, with its own clock, when the next one is due or training ends: always after the same update, however
    long it took, so that a run can be repeated and resumed.
    """

    kept = ("evaluated_at", "pending")

    def __init__(self) -> None:
        self.evaluated_at = -1
        self.pending: dict[str, Any] | None = None
        self._worker: EvaluationWorker | None = None

    def on_train_start(self, trainer: L.Trainer, phase: Any) -> None:
        if self.pending is not None:
            self._submit(trainer, phase, Snapshot(**self.pending["policy"]))
        if phase.evaluates_at_start and self.evaluated_at < 0:
            self._evaluate(trainer, phase)

    def on_train_batch_end(self, trainer: L.Trainer, phase: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        every = phase.evaluation_period
        if phase.evaluates and every > 0 and phase.clock and phase.clock % every == 0:
            self._evaluate(trainer, phase, phase.data.eval_async and not phase.waits_for_scores)

    def on_train_end(self, trainer: L.Trainer, phase: Any) -> None:
        phase.make_sure()
        if phase.evaluates:
            self._collect(trainer, phase)
            self._evaluate(trainer, phase)

    def on_exception(self, trainer: L.Trainer, phase: Any, exception: BaseException) -> None:
        self.teardown(trainer, phase, "fit")
        phase.end_evaluations()

    def teardown(self, trainer: L.Trainer, phase: Any, stage: str) -> None:
        if self._worker is not None:
            self._worker.close()

    def _evaluate(self, trainer: L.Trainer, phase: Any, background: bool = False) -> None:
        if phase.data.env_id is None or not phase.data.eval_episodes or self.evaluated_at == phase.clock:
            return
        phase.make_sure()
        self._collect(trainer, phase)
        self.evaluated_at = phase.clock
        if not background:
            phase.run_evaluation()
            return
        phase.before_evaluation()
        policy = Snapshot.of(phase.policy(), phase.normalizer)
        self.pending = {"moment": [phase.updates, phase.env_steps], "policy": asdict(policy)}
        self._submit(trainer, phase, policy)
        phase.tell("on_evaluation_begun")

    def _submit(self, trainer: L.Trainer, phase: Any, policy: Snapshot) -> None:
        if not trainer.is_global_zero:
            return  # one process evaluates for all
        if self._worker is None:
            self._worker = EvaluationWorker(phase.data.evaluator())
        self._worker.submit(policy)

    def _collect(self, trainer: L.Trainer, phase: Any) -> None:
        """Records the evaluation in the background, if there is one, as of its own moment."""
        if self.pending is None:
            return
        pending, self.pending = self.pending, None
        result = phase.ranks.all(None if self._worker is None else self._worker.result())[0]
        phase.eval_env_steps += result.env_steps
        phase.record_evaluation(result, tuple(pending["moment"]))
