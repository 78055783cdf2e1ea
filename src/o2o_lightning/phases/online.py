"""The online phase: the environment is stepped, and the method learns from what came of it."""

from functools import partial
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from numpy.typing import NDArray
from torch import Tensor, nn

from o2o_lightning.callbacks.reference import ReferencePolicy, ThresholdSchedule
from o2o_lightning.checkpoint.handover import POLICIES
from o2o_lightning.data.online import PRELOADED, OnlineData
from o2o_lightning.envs.episodes import Evaluation
from o2o_lightning.errors import UserError
from o2o_lightning.methods.method import Loss, Method
from o2o_lightning.methods.o2.constraint import Constrained
from o2o_lightning.methods.o2.reference import Referenced
from o2o_lightning.nn.targets import differ, hard_update
from o2o_lightning.objectives.diagnostics import ONE_SIDED, standardized_gap
from o2o_lightning.phases.base import Phase
from o2o_lightning.phases.descent import Draw
from o2o_lightning.phases.gate import Gate
from o2o_lightning.phases.probe import safe_divergence
from o2o_lightning.phases.trial import Court
from o2o_lightning.replay.balanced import Balanced

FloatArray = NDArray[np.float32]


class Online(Phase):
    """Fine-tunes a policy in the environment, or learns from scratch where no checkpoint is given.

    Args:
        method: what is descended.
        init_from: checkpoint of the alignment; of the re-evaluation or the offline phase for ablations.
        moments: Adam's moments of the phase before: ``carried``, ``fresh``, or as the ``method`` has it.
        options: as in :class:`o2o_lightning.phases.base.Phase`.
    """

    phase: ClassVar[str] = "online"
    accepts: ClassVar[tuple[str, ...]] = ("align", "reevaluate", *POLICIES)
    clock_name: ClassVar[str] = "env_steps"

    def __init__(
        self,
        method: Method,
        init_from: str | None = None,
        moments: Literal["method", "carried", "fresh"] = "method",
        **options: Any,
    ) -> None:
        super().__init__(method, init_from, **options)
        self.moments = moments
        self.court, self.gate = Court(self), Gate(self)
        self.start_values: dict[str, float] = {}
        self.uniform = False  # whether the last action was, and not the policy's
        self.by_chance = False  # whether one of this episode's was

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if self.source is not None and not self.source.aligned:
            raise UserError(
                f"checkpoint {self.source.path}: its critic is not aligned, and is not let loose on the policy. "
                "`o2o resume RUN_DIR --trainer.max_steps N` lengthens the alignment; another one may ask for less, "
                "--model.convergence.share."
            )
        if stage == "fit":
            self.check_options(self.interacting, self.ranks.count)
            if self._gated:
                self.gate.begin()

    def check_options(self, data: OnlineData, processes: int) -> None:
        """Refuses what neither evaluations, nor returns or judges, can decide with this data.

        Raises:
            UserError: the reference policy would never follow.
        """
        method, option = self.method, "--model.reference.mode"
        for name, needed in {"eval_every": self._holds, "eval_episodes": self.waits_for_scores}.items():
            if needed and not getattr(data, name):
                raise UserError(
                    f"--data.{name} 0: the reference policy follows evaluations (docs/trials.md). Leave it out, or "
                    f"pass {option} returns, which needs none (docs/returns.md)."
                )
        if self._chooses and not data.eval_episodes:
            raise UserError(
                "--model.hand_on better: episodes of both tell which is, and --data.eval_episodes 0 plays none. "
                "Leave one of them out."
            )
        if not self._gated:
            return
        mode = cast(Referenced, method).reference.mode
        if processes > 1:
            raise UserError(
                f"{option} {mode}: it reads the training episodes of one process. Pass --trainer.devices 1, or "
                f"{option} trials."
            )
        if mode == "judged" and (data.dataset is None or not cast(Referenced, method).shares_episodes):
            raise UserError(
                f"{option} judged: values are fitted to a dataset and a replay buffer, which this run does not have. "
                f"Pass {option} returns."
            )
        if mode == "judged" and (data.seeds or data.mix in PRELOADED):
            raise UserError(
                f"{option} judged: its values are of episodes that nothing else learns from, and the online buffer "
                f"would begin with the dataset's. Pass --data.mix half and no --data.seeds, or {option} returns."
            )

    # ---- the loop ------------------------------------------------------------------------------------------------

    def train_chunk(self, chunk: int) -> None:
        """``chunk`` environment steps: act, step, store; after each the updates that it has earned."""
        data = self.interacting
        for left in range(chunk, 0, -self.ranks.count):
            together = min(left, self.ranks.count)  # each process makes one of them
            if self.ranks.steps(self.env_steps, together):
                data.step(self.explore)
            self.on_env_step(together)
            if self._gated and not self.by_chance:
                self.gate.ended(data.interaction)
            if due := data.updates_due(self.env_steps):
                self.make(Draw(data.numbers(), place, together) for place in range(due))

    def explore(self, observation: FloatArray) -> FloatArray:
        """The action ``[A]`` to take at a raw observation ``[S]``."""
        generator, under_way = self.interacting.generator, self.interacting.interaction
        begins = not under_way.episode_length
        last = under_way.last_return if not self.by_chance else None  # no policy's return
        self.method.before_step(under_way.episode_length, last, generator)
        self.uniform = self._warms_up_at_random()
        self.by_chance = self.uniform or (self.by_chance and not begins)
        if self.uniform:
            return generator.uniform(-1.0, 1.0, self.policy().spec.action_dim).astype(np.float32)
        return self.method.act(self.normalizer.numpy(observation), generator)

    def settle(self, loss: Loss) -> None:
        super().settle(loss)
        if "priority" in loss.metrics and isinstance(rule := self.data.buffer.rule, Balanced):
            loss.metrics.update(rule.prioritize(loss.metrics["priority"]))

    def _warms_up_at_random(self) -> bool:
        by, steps = self.interacting.warmup_by, self.interacting.warmup_steps
        if by == "auto":
            return self.source is None and self.updates == 0
        return by == "uniform" and self.env_steps < steps

    def on_env_step(self, count: int = 1) -> None:
        """Advances the environment clock, by the steps that all processes have made; the updates come after it."""
        for _ in range(count):
            self.env_steps += 1
            self.tell("on_env_step")

    @property
    def interacting(self) -> OnlineData:
        """The DataModule, which has an environment."""
        return cast(OnlineData, self.data)

    def carries_moments(self, phase: str) -> bool:
        return super().carries_moments(phase) if self.moments == "method" else self.moments == "carried"

    # ---- the clock -----------------------------------------------------------------------------------------------

    @property
    def clock(self) -> int:
        return self.env_steps

    @property
    def total(self) -> int:
        return int(self.interacting.budget)

    @property
    def evaluation_period(self) -> int:
        return self.data.eval_every

    @property
    def evaluates_at_start(self) -> bool:
        return self.evaluation_period > 0 or self.referenced is None or self.waits_for_scores or self._chooses

    @property
    def planned_updates(self) -> int:
        data = self.interacting
        return int(max(data.budget - data.steps_before_updates, 0) * data.utd)

    def local_state(self) -> dict[str, Any]:
        own = {"court": self.court.state()} if self._holds else {"gate": self.gate.state()} if self._gated else {}
        return super().local_state() | {"by_chance": self.by_chance} | own

    def load_local_state(self, state: dict[str, Any]) -> None:
        super().load_local_state(state)
        self.by_chance = state.get("by_chance", False)
        if self._holds:
            self.court.load_state(state["court"])
        if self._gated:
            self.gate.load_state(state["gate"])

    def facts(self) -> dict[str, Any]:
        return super().facts() | (self.court.facts() if self._holds else self.gate.facts())

    # ---- the reference policy ------------------------------------------------------------------------------------

    @property
    def referenced(self) -> Referenced | None:
        """The method, if it stays close to a reference policy."""
        method = self.method
        return method if isinstance(method, Referenced) and method.follows else None

    @property
    def _holds(self) -> bool:
        return self.referenced is not None and self.referenced.held

    @property
    def _gated(self) -> bool:
        return self.referenced is not None and self.referenced.gated

    @property
    def _chooses(self) -> bool:
        return isinstance(method := self.referenced, Constrained) and method.hand_on == "better"

    @property
    def waits_for_scores(self) -> bool:
        return self.referenced is not None and self.referenced.reference.mode in ("best", "trials")

    def callbacks(self) -> list[Callback]:
        callbacks: list[Callback] = []
        method = self.referenced
        if method is not None:
            reference = method.reference
            callbacks.append(ReferencePolicy(reference.mode, reference.start, reference.period))
        if isinstance(method, Constrained):
            threshold, end = method.threshold, method.threshold.end * method.reference.threshold_scale
            probe = partial(safe_divergence, self, end) if threshold.measured else None
            callbacks.append(ThresholdSchedule(threshold.start, end, threshold.env_steps, probe))
        return callbacks

    def run_evaluation(self) -> Evaluation:
        method = cast(Constrained, self.method)
        if self.env_steps == 0 and self._chooses:
            both = (self.judge(actor, method.judge_episodes) for actor in (method.actor, method.offline_actor))
            if standardized_gap(*(evaluation.returns for evaluation in both)) <= ONE_SIDED:
                method.become(method.offline_actor)
        if self._holds:
            return self.court.trial()
        result = super().run_evaluation()
        if self.env_steps == 0:
            self.begin(self.evaluate(method.actor) if self._gated else result)
        return result

    def begin(self, aligned: Evaluation) -> Evaluation:
        """Takes note of both ends of the hand-over, from the same start states: π_on, just evaluated, and π_off."""
        before = self.method.offline_actor
        offline = self.evaluate(before) if differ(self.method.actor, before) else aligned
        self.start_values = {"aligned": aligned.value, "offline": offline.value}
        self.scores |= {"aligned": aligned.score, "offline": offline.score}
        self.returns |= {"aligned": aligned.return_mean, "offline": offline.return_mean}
        return offline

    def set_reference(self, actor: nn.Module, score: float) -> None:
        """π_ref becomes a copy of ``actor``, which was evaluated at ``score``."""
        method = cast(Any, self.method)
        hard_update(method.reference_policy, actor)
        method.reference_score.fill_(score)

    @torch.no_grad()
    def forget_moments(self, group: str) -> None:
        """Adam's moments of that part of the method were of where it was, and not of where it begins anew."""
        optimizer: Any = self.optimizers()
        for found in optimizer.param_groups:
            for parameter in found["params"] if found["name"] == group else ():
                for value in optimizer.state.get(parameter, {}).values():
                    value.zero_()

    def set_threshold(self, threshold: float) -> None:
        """τ_t of the constraint, from now on."""
        cast(Tensor, self.method.threshold_now).fill_(threshold)

    def status(self) -> list[str]:
        method = self.referenced
        if not isinstance(method, Constrained):
            return []
        parts = [f"λ {float(method.log_multiplier.detach().exp()):.3f} τ {float(method.threshold_now):.4g}"]
        return [*parts, f"f {self.display['divergence']:.4g}"] if "divergence" in self.display else parts
