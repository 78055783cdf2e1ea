"""Trials: the actor is a candidate, and π_ref what the run stands for, until the actor is proved better."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from o2o_lightning.envs.episodes import Evaluation
from o2o_lightning.methods.o2.reference import Referenced
from o2o_lightning.nn.targets import differ
from o2o_lightning.objectives.diagnostics import paired_gap

if TYPE_CHECKING:
    from o2o_lightning.phases.online import Online


class Court:
    """Holds π_ref against the actor at each evaluation.

    Attributes:
        reference: π_ref's evaluation, from the start states that every evaluation begins at; None before the first.
        verdicts: how many trials the actor has won, lost, and neither.
        candidates: the actor's own evaluations, ``[clock, return, score]`` each.
    """

    def __init__(self, phase: Online) -> None:
        self.phase = phase
        self.reference: Evaluation | None = None
        self.verdicts = {"won": 0, "lost": 0, "neither": 0}
        self.candidates: list[list[float | None]] = []

    @property
    def method(self) -> Referenced:
        return cast(Referenced, self.phase.method)

    def trial(self) -> Evaluation:
        """Evaluates the actor, follows the verdict, and records π_ref's evaluation as this moment's."""
        phase, method = self.phase, self.method
        phase.before_evaluation()
        if self.reference is None:
            candidate = phase.evaluate(method.actor)
            self.reference = phase.begin(candidate)
            phase.set_reference(method.offline_actor, self.reference.value)
            self._try(candidate)
        elif differ(method.actor, method.reference_policy):  # else it has not learned since it began there
            self._try(phase.evaluate(method.actor))
        phase.record_evaluation(self.reference, (phase.updates, phase.env_steps))
        return self.reference

    def _try(self, candidate: Evaluation) -> None:
        phase, method = self.phase, self.method
        verdict = self._judged(candidate)
        lost = verdict == "lost"
        for _ in range(method.trials.retreats):
            if verdict == "lost":
                method.retreat()
                candidate = phase.evaluate(method.actor)
                verdict = self._judged(candidate)
        if verdict == "won":
            self.reference = candidate
            phase.set_reference(method.actor, candidate.value)
        elif verdict == "lost":
            method.become(method.reference_policy)
        if lost:
            phase.forget_moments("actor")
        if phase.env_steps:
            method.after_trial(verdict == "lost")
        self.verdicts[verdict] += 1

    def _judged(self, candidate: Evaluation) -> str:
        """The verdict on the actor as it is, which is written down."""
        phase, reference = self.phase, self.reference
        assert reference is not None
        gap = self.gap(candidate, reference)
        verdict = self.verdict(gap, candidate, reference)
        self.candidates.append([phase.env_steps, candidate.return_mean, candidate.score])
        row = {"return_mean": candidate.return_mean, "gap": gap, "won": float(verdict == "won")}
        row |= {} if candidate.score is None else {"score": candidate.score}
        phase.log_now({f"candidate_{name}": value for name, value in row.items()})
        return verdict

    def gap(self, candidate: Evaluation, reference: Evaluation) -> float:
        """By how many standard errors the actor is better; if it seems to be, with other start states as well.

        One episode alone proves nothing: then other start states say whether it is worse, too.
        """
        phase, method = self.phase, self.method
        gap = paired_gap(candidate.returns, reference.returns)
        if gap <= method.trials.confidence and not (gap < 0.0 and len(candidate.returns) == 1):
            return gap
        number = 1 + sum(self.verdicts.values())
        ours, theirs = (
            phase.judge(policy, method.trials.confirmations, number).returns
            for policy in (method.actor, method.reference_policy)
        )
        together = paired_gap([*candidate.returns, *ours], [*reference.returns, *theirs])
        return min(gap, together) if gap > 0.0 else together

    def verdict(self, gap: float, candidate: Evaluation, reference: Evaluation) -> str:
        """``won``, ``lost`` or ``neither``."""
        trials = self.method.trials
        if gap > trials.confidence:
            return "won"
        allowed = trials.tolerance * abs(reference.return_mean)
        far = candidate.return_mean < reference.return_mean - allowed
        return "lost" if far and gap < -trials.confidence else "neither"

    def facts(self) -> dict[str, Any]:
        """What the summary says: verdicts, the actor's curve, and what either policy's training episodes returned."""
        played = {
            name: {"episodes": len(returns), "return_mean": sum(returns) / len(returns) if returns else None}
            for name, returns in self.method.played.items()
        }
        return {"trials": {**self.verdicts, "candidates": self.candidates, "played": played}}

    def state(self) -> dict[str, Any]:
        reference = self.reference
        known = None if reference is None else [reference.returns, reference.lengths, reference.score]
        own = {"reference": known, "verdicts": self.verdicts, "candidates": self.candidates}
        return {**own, "method": self.method.local_state()}

    def load_state(self, state: dict[str, Any]) -> None:
        self.reference = None if state["reference"] is None else Evaluation(*state["reference"])
        self.verdicts, self.candidates = state["verdicts"], state["candidates"]
        self.method.load_local_state(state["method"])
