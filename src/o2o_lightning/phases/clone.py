"""Cloning: a policy of any family becomes one of the family that the online algorithm needs."""

import math
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from o2o_lightning.checkpoint.handover import PHASES, Handover
from o2o_lightning.data.cloning import CloneData
from o2o_lightning.envs.episodes import Evaluation
from o2o_lightning.envs.scores import score_or_return
from o2o_lightning.errors import UserError, at_least
from o2o_lightning.methods.clone import Clone
from o2o_lightning.nn.actor import StochasticActor
from o2o_lightning.nn.gaussian import GaussianActor, GaussianHead, ReleasedHead
from o2o_lightning.nn.targets import frozen_copy, hard_update
from o2o_lightning.phases.base import Phase
from o2o_lightning.policies.black_box import Units, black_box
from o2o_lightning.policies.history import Teacher, player_of
from o2o_lightning.policies.read import recognise

CLIPPED = tuple(family.kind for family in (GaussianActor, GaussianHead, ReleasedHead))  # whose samples are
HELD_OUT_STATES = 8192
TRIED = 1000  # states that a black box is tried on
ENTROPY_SLACK = 0.1  # nats a dimension; an entropy this close to its target has met it


class ClonePolicy(Phase):
    """Imitates a policy on a dataset's states: Eq. 52 into a Gaussian family, mean square into a deterministic one.

    Learns: the student. Frozen: the teacher, and its critics, which are only handed on.
    Hands on: the student, which is π_off of the later phases. A teacher that acts on histories sees each state behind
    its own episode's, and is asked for its evaluation return.

    The student is judged every ``check_every`` updates on the states of held-out episodes: a deterministic one by the
    root mean square distance to the teacher's actions, a Gaussian one by its log-likelihood once its entropy has met
    the target. The best one is kept, and the phase ends early when ``patience`` checks have brought no progress.

    Args:
        method: the student.
        init_from: checkpoint whose policy is the teacher.
        teacher: instead, a black box: ``module:function`` or a file.
        teacher_format: ``callable``, ``onnx``, ``torchscript`` or ``torch_export``; ``auto`` tells the first two.
        teacher_actions: what its actions are counted in: ``native``, the environment's own units, or ``unit``, [-1, 1];
            ``auto`` is native, and asks where a file's actions fit both.
        check_every: updates between checks; patience: checks without progress until the end.
        progress: least gain of a check that is progress: in log-likelihood a dimension, or the distance's logarithm.
        options: as in :class:`o2o_lightning.phases.base.Phase`.
    """

    phase: ClassVar[str] = "clone"
    accepts: ClassVar[tuple[str, ...]] = PHASES
    best_misfit: Tensor
    checks_without_progress: Tensor

    def __init__(
        self,
        method: Clone,
        init_from: str | None = None,
        teacher: str | None = None,
        teacher_format: str = "auto",
        teacher_actions: Units = "auto",
        check_every: int = 1000,
        patience: int = 5,
        progress: float = 0.01,
        **options: Any,
    ) -> None:
        super().__init__(method, init_from, **options)
        if (init_from is None) == (teacher is None):
            raise UserError("--phase clone: pass --model.init_from CKPT, or --model.teacher module:function or FILE.")
        at_least("--model.check_every", check_every, 1)
        at_least("--model.patience", patience, 1)
        self.teacher_spec, self.teacher_format, self.teacher_actions = teacher, teacher_format, teacher_actions
        self.check_every, self.patience, self.progress = check_every, patience, progress
        self.register_buffer("best_misfit", torch.tensor(math.inf))
        self.register_buffer("checks_without_progress", torch.tensor(0))
        self.fidelity: dict[str, Any] = {}
        self.held_out: tuple[Tensor, Tensor, Tensor] | None = None

    @property
    def states(self) -> CloneData:
        """The DataModule, which holds episodes out."""
        data = self.data
        if not isinstance(data, CloneData):
            raise UserError("--phase clone: it needs --data o2o_lightning.data.cloning.CloneData.")
        return data

    @property
    def evaluation_period(self) -> int:
        return 0

    @property
    def cadence(self) -> int:
        return self.check_every

    @property
    def student(self) -> Clone:
        """The method."""
        return cast(Clone, self.method)

    def setup(self, stage: str) -> None:
        built = self.is_built
        super().setup(stage)
        if built:
            return
        self.best = frozen_copy(self.student.actor)
        self.teacher: Teacher
        if self.source is None:
            assert self.teacher_spec is not None
            format = recognise(self.teacher_spec)[0] if self.teacher_format == "auto" else self.teacher_format
            states = self.data.needed("a policy is cloned on its states")["observation"]
            tried = states[:: max(len(states) // TRIED, 1)].numpy()
            sizes, units = self.data.sizes(), self.teacher_actions
            self.teacher = black_box(self.teacher_spec, format, sizes, self.data.env, units, tried)
        else:
            self.teacher = player_of(self.source.build_policy(), self.normalizer)
        self.student.teach(self.teacher.sampled, clipped=self.teacher.kind in CLIPPED)

    def restore(self, source: Handover) -> None:
        super().restore(source)
        self.best = frozen_copy(self.student.actor)

    def on_fit_start(self) -> None:
        data = self.states
        assert data.store is not None
        raw = data.store["observation"]
        data.store.attach("teacher_action", self.teacher.label(data.store, self.device))
        rows = data.held_out_rows
        if len(rows) > HELD_OUT_STATES:
            rows = rows[:: len(rows) // HELD_OUT_STATES][:HELD_OUT_STATES]
        observation, mode = self.normalizer(raw[rows]), data.store["teacher_action"][rows]
        noise = torch.randn(mode.shape, generator=torch.Generator().manual_seed(0))
        held_out = (observation, mode, self.student.label_at(observation, mode, noise))
        self.held_out = cast(tuple[Tensor, Tensor, Tensor], tuple(part.to(self.device) for part in held_out))

    def training_step(self, chunk: Any, batch_idx: int) -> None:
        checks = self.updates // self.check_every
        super().training_step(chunk, batch_idx)
        over = self.updates >= self.trainer.max_steps
        if over or self.updates // self.check_every > checks:
            self._check()
            if over or int(self.checks_without_progress) >= self.patience:
                self.trainer.should_stop = True
                if math.isfinite(float(self.best_misfit)):
                    hard_update(self.student.actor, self.best)
                hard_update(self.student.offline_actor, self.student.actor)

    def run_evaluation(self) -> Evaluation:
        """The student's score and, from the same start states, its teacher's."""
        result = super().run_evaluation()
        before = self.evaluate_player(self.teacher)
        self.scores |= {"offline": result.score, "teacher": before.score}
        self.returns |= {"offline": result.return_mean, "teacher": before.return_mean}
        return result

    def facts(self) -> dict[str, Any]:
        return {"fidelity": self._fidelity()}

    def conclusion(self) -> str | None:
        found = self._fidelity()
        parts = [f"action RMSE {found['action_rmse']:.4f}"]
        if "log_likelihood" in found:
            parts.append(f"log-likelihood {found['log_likelihood']:.2f}, entropy {found['entropy']:.2f}")
        line = f"clone: {', '.join(parts)} on {found['states']:,} held-out states"
        if "student" not in found:
            return line
        what = "return" if self.scores.get("offline") is None else "score"
        return f"{line}; {what} {found['teacher']:.1f} before, {found['student']:.1f} after"

    # ---- internals -----------------------------------------------------------------------------------------------

    def _check(self) -> None:
        found = self.ranks.all(self._judge())[0]  # all processes must stop alike, to the last bit
        self.log_now({f"held_out_{name}": value for name, value in found.items()})
        if found.get("entropy", math.inf) < self.student.target_entropy * (1.0 + ENTROPY_SLACK):
            return
        if "log_likelihood" in found:
            misfit = -found["log_likelihood"] / self.student.actor.spec.action_dim
        else:
            misfit = math.log(max(found["action_rmse"], 1e-12))
        gain = float(self.best_misfit) - misfit
        if gain > 0:
            self.best_misfit.fill_(misfit)
            hard_update(self.best, self.student.actor)
        self.checks_without_progress.fill_(0 if gain > self.progress else int(self.checks_without_progress) + 1)

    @torch.no_grad()
    def _judge(self) -> dict[str, float]:
        assert self.held_out is not None
        actor = self.student.actor
        device = next(actor.parameters()).device  # at the end of a fit on a GPU Lightning has moved it to the CPU
        observation, mode, label = (part.to(device) for part in self.held_out)
        found = {"action_rmse": float((actor.mode(observation) - mode).square().mean().sqrt())}
        if isinstance(actor, StochasticActor):
            noise = torch.randn(mode.shape, generator=torch.Generator().manual_seed(1)).to(device)
            log_prob, entropy, _ = actor.density(observation, label, noise)
            found |= {"log_likelihood": float(log_prob.mean()), "entropy": float(entropy.mean())}
        return found

    def _fidelity(self) -> dict[str, Any]:
        if not self.fidelity:
            assert self.held_out is not None
            self.fidelity = {
                "teacher_family": self.teacher.kind,
                "family": self.student.family,
                "states": len(self.held_out[0]),
                **self._judge(),
            }
        names = {"teacher": "teacher", "student": "offline"}
        scored = {
            name: score_or_return(self.scores.get(key), self.returns[key])
            for name, key in names.items()
            if key in self.returns
        }
        return {**self.fidelity, **scored}
