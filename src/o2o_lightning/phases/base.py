"""What all phases share: the step clock, one optimizer, noise, hand-over, evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple, cast

import torch
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.core.optimizer import LightningOptimizer
from tensordict import TensorDictBase
from torch import Tensor, nn

from o2o_lightning.agents.base import Agent
from o2o_lightning.agents.sequence import SequenceAgent
from o2o_lightning.callbacks.evaluation_loop import EvaluationLoop
from o2o_lightning.callbacks.hooks import PhaseCallback
from o2o_lightning.checkpoint.handover import KEY, Handover, read_handover
from o2o_lightning.data.module import OfflineData
from o2o_lightning.engine.adam import Adam
from o2o_lightning.engine.health import ChunkRecord
from o2o_lightning.envs.episodes import Evaluation, Player
from o2o_lightning.errors import at_least
from o2o_lightning.nn.actor import Policy
from o2o_lightning.nn.normalizer import Normalizer
from o2o_lightning.phases.descent import Descent
from o2o_lightning.phases.handed import carry_moments
from o2o_lightning.phases.hardware import check_compilable, check_hardware
from o2o_lightning.phases.steps import SteppingModule
from o2o_lightning.policies.history import player_of
from o2o_lightning.ranks import Ranks
from o2o_lightning.versions import library_versions


class Loss(NamedTuple):
    """One scalar to descend, and what may be logged of it (tensors of any shape, averaged only when logged)."""

    value: Tensor
    metrics: dict[str, Tensor]


class Phase(SteppingModule):
    """Base of all phases; a subclass says which networks learn (:meth:`learners`) and what a step is (:meth:`update`).

    **Clock.** One gradient update is one :meth:`update`, whatever number of losses it yields, so that
    ``trainer.global_step``, ``max_steps`` and checkpoint cadences count updates exactly; environment steps are the
    second clock, ``env_steps``. A chunk is an iterable of batches; one ``training_step`` consumes a chunk.

    Args:
        init_from: checkpoint of the phase before.
        compile: compile the step functions into one graph each, kept in a cache on the disk; pays back in long runs.
    """

    phase: ClassVar[str]
    algorithm: ClassVar[str]
    accepts: ClassVar[tuple[str, ...]] = ()
    clock_name: ClassVar[str] = "updates"
    evaluates: ClassVar[bool] = True
    evaluates_at_start: ClassVar[bool] = False
    adam_eps: ClassVar[float] = 1e-8
    carries_moments: ClassVar[bool] = True
    actor_kind: ClassVar[str | None] = None  # family of policy that the phase works on or makes; None for any
    makes_critic: ClassVar[bool] = False  # an action-value critic, which it hands on
    needs_critic: ClassVar[bool] = False  # of the checkpoint that it starts from

    agent: Agent | SequenceAgent
    normalizer: Normalizer

    def __init__(self, init_from: str | None = None, compile: bool = False) -> None:
        super().__init__(compile)
        self.automatic_optimization = False
        self.init_from = init_from
        self.updates = 0
        self.env_steps = 0
        self.eval_env_steps = 0
        self.curve: list[list[float | None]] = []
        self.scores: dict[str, float | None] = {}
        self.returns: dict[str, float] = {}
        self.config: dict[str, Any] = {}
        self.display: dict[str, float] = {}
        self.source: Handover | None = None
        self.ranks = Ranks()

    # ---- what a phase says ---------------------------------------------------------------------------------------

    @classmethod
    def policy_family(cls, arguments: Mapping[str, Any]) -> str | None:
        """:attr:`actor_kind`, where it does not depend on the constructor's ``arguments``."""
        return cls.actor_kind

    def build(self, source: Handover | None) -> Agent | SequenceAgent:
        """The agent: networks taken from ``source`` and networks made anew."""
        raise NotImplementedError(f"{type(self).__name__}.build")

    def learners(self) -> dict[str, tuple[nn.Module | nn.Parameter, float]]:
        """Networks (or scalars) that learn, by group name, with their learning rates."""
        raise NotImplementedError(f"{type(self).__name__}.learners")

    def update(self, batch: TensorDictBase) -> Iterator[Loss]:
        """One gradient update; the code after a ``yield`` sees the networks after that loss's optimizer step."""
        raise NotImplementedError(f"{type(self).__name__}.update")

    def rates(self) -> dict[str, float]:
        """Learning rates of the groups of :meth:`learners` that follow a schedule, at this moment of its clock."""
        return {}

    def gradient_limits(self) -> dict[str, float]:
        """Largest gradient norm of a group of :meth:`learners`, for those that are clipped."""
        return {}

    def optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """The optimizer of all groups of :meth:`learners`."""
        return Adam(groups, self.adam_eps)

    def transition_cache(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """What depends only on frozen networks and the dataset: computed once a transition before the phase."""
        return {}

    def policy(self) -> Policy:
        """The policy that evaluations and exports use."""
        return self.agent.actor

    # ---- Lightning -----------------------------------------------------------------------------------------------

    @property
    def data(self) -> OfflineData:
        """The DataModule; every phase needs one of ours."""
        return cast(OfflineData, self.trainer.datamodule)  # type: ignore[attr-defined]

    @property
    def clock(self) -> int:
        """Gradient updates, or environment steps where the phase interacts."""
        return self.updates

    @property
    def method(self) -> str:
        """What ran, as results and checkpoints name it."""
        return self.algorithm

    @property
    def total(self) -> int:
        """The value of :attr:`clock` at which the phase ends."""
        return int(self.trainer.max_steps)

    @property
    def evaluation_period(self) -> int:
        """How much of :attr:`clock` passes between evaluations; 0 for only at the end."""
        return self.data.eval_every_updates

    @property
    def waits_for_scores(self) -> bool:
        """Whether training depends on each evaluation's result, so that none can be left to the background."""
        return False

    @property
    def cadence(self) -> int:
        """Gradient updates between two moments, beside evaluations, that a chunk must end at; 0 for none."""
        return 0

    def setup(self, stage: str) -> None:
        if hasattr(self, "agent"):
            return
        check_hardware(self.trainer)
        data, self.ranks = self.data, Ranks.of(self.trainer)
        if self.compiles:
            check_compilable(self.trainer, self.ranks.count)
        if self.init_from is not None:
            self.source = read_handover(self.init_from, self.accepts, f"--phase {self.phase}")
            self.normalizer = self.source.build_normalizer()
            self.scores, self.returns = dict(self.source.scores), dict(self.source.returns)
            self.source.check_policy(self.actor_kind, data.sizes(), self.algorithm)
        else:
            self.normalizer = data.fit_normalizer()
        data.normalizer = self.normalizer
        self.agent = self.build(self.source)

    def on_fit_start(self) -> None:
        self.data.precompute(self.transition_cache)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups = []
        for name, (part, rate) in self.learners().items():
            at_least(f"--model.{name}_lr", rate, 0)
            prefix = next(key for key, module in [*self.named_modules(), *self.named_parameters()] if module is part)
            named = [(prefix, part)] if isinstance(part, nn.Parameter) else list(part.named_parameters(prefix))
            groups.append({"params": named, "lr": rate, "name": name})
        optimizer = self.optimizer(groups)
        if self.carries_moments and self.source is not None and self.source.phase in ("reevaluate", "align"):
            carry_moments(optimizer, self.source)
        return optimizer

    def configure_callbacks(self) -> list[Callback]:
        return [EvaluationLoop()]

    def training_step(self, chunk: Iterable[TensorDictBase], batch_idx: int) -> None:
        self._record = ChunkRecord(self.phase, self.ranks.rank)
        self._descent = Descent(self, self._record)
        self._train_chunk(chunk)
        self._record.check()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        critic, value = getattr(self.agent, "critic", None), getattr(self.agent, "value", None)
        checkpoint[KEY] = Handover(
            phase=self.phase,
            algorithm=self.method,
            origin=self.method if self.source is None else self.source.origin,
            actor=self.policy().spec.to_dict(),
            critic=critic.spec.to_dict() if critic is not None else None,
            value=value.spec.to_dict() if value is not None else None,
            normalizer=self.normalizer.state(),
            env_id=self.data.env_id,
            manifest=self.data.manifest(),
            layout=list(self.data.layout),
            scores=self.scores,
            returns=self.returns,
            versions=library_versions(),
        ).pack()
        checkpoint[f"{KEY}_progress"] = {
            "updates": self.updates,
            "env_steps": self.env_steps,
            "eval_env_steps": self.eval_env_steps,
            "curve": self.curve,
            "config": self.config,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        progress = checkpoint[f"{KEY}_progress"]
        self.updates, self.env_steps = progress["updates"], progress["env_steps"]
        self.eval_env_steps, self.curve = progress["eval_env_steps"], progress["curve"]
        self.scores, self.returns = checkpoint[KEY]["scores"], checkpoint[KEY]["returns"]

    # ---- for subclasses and callbacks ----------------------------------------------------------------------------

    def mean_magnitude(self, q: Tensor) -> Tensor:
        """Mean of ``|q|`` over the batches of all processes, a constant."""
        return self.ranks.mean(q.detach().abs().mean())

    def facts(self) -> dict[str, Any]:
        """What ``summary.json`` says of this phase beyond what it says of all."""
        return {}

    @property
    def planned_updates(self) -> int:
        """Gradient updates that the phase is going to make, if all goes well."""
        return int(self.trainer.max_steps)

    def conclusion(self) -> str | None:
        """One line for the user when the phase has ended."""
        return None

    def status(self) -> list[str]:
        """What the progress line shows besides clock, scores and speed."""
        return []

    def log_now(self, metrics: dict[str, float], moment: tuple[int, int] | None = None) -> None:
        """One row to every logger, on the phase's own clock; both clocks, of now or of ``moment``, are columns."""
        updates, env_steps = moment or (self.updates, self.env_steps)
        row = {"updates": updates, **({"env_steps": env_steps} if env_steps else {}), **metrics}
        self.display.update(metrics)
        for logger in self.trainer.loggers:
            logger.log_metrics(row, step=env_steps if self.clock_name == "env_steps" else updates)

    def evaluate(self, policy: Policy | None = None) -> Evaluation:
        """Evaluates ``policy`` (default: the phase's) off the training environment; its steps are counted as a cost."""
        return self.evaluate_player(player_of(policy or self.policy(), self.normalizer))

    def evaluate_player(self, player: Player) -> Evaluation:
        """As :meth:`evaluate`, of anything that can play episodes."""
        result = self.data.evaluate(player)
        self.eval_env_steps += result.env_steps
        return result

    def before_evaluation(self) -> None:
        """What a phase measures of its networks whenever its policy is evaluated."""

    def run_evaluation(self) -> Evaluation:
        """Evaluates the policy now."""
        self.before_evaluation()
        result = self.evaluate()
        self.record_evaluation(result, (self.updates, self.env_steps))
        return result

    def record_evaluation(self, result: Evaluation, moment: tuple[int, int]) -> None:
        """Keeps the point of the curve at ``moment`` (updates, environment steps), logs it, and tells the callbacks."""
        clock = moment[self.clock_name == "env_steps"]
        self.curve.append([clock, result.return_mean, result.score])
        row = {"eval_env_steps": float(self.eval_env_steps), "return_mean": result.return_mean}
        self.log_now(row if result.score is None else {**row, "score": result.score}, moment)
        self.trainer.callback_metrics["score"] = torch.tensor(result.value)
        self.tell("on_evaluation", result)

    def tell(self, hook: str, *args: Any) -> None:
        """Calls one of the hooks of :class:`o2o_lightning.callbacks.hooks.PhaseCallback`; bars show what it brought."""
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        for callback in sorted(callbacks, key=lambda callback: isinstance(callback, ProgressBar)):
            if isinstance(callback, PhaseCallback):
                getattr(callback, hook)(self.trainer, self, *args)

    # ---- internals -----------------------------------------------------------------------------------------------

    def _train_chunk(self, chunk: Iterable[TensorDictBase]) -> None:
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        for batch in chunk:
            due = every > 0 and (self.updates + 1) % every == 0
            metrics: dict[str, Tensor] = {}
            self._set_rates()
            for i, loss in enumerate(self.update(batch)):
                self._record.add(self.updates, batch, loss.value, loss.metrics)
                self._descend(loss.value, counted=i == 0)
                if due:
                    metrics.update(loss.metrics)
            self.updates += 1
            if due:
                row = {name: float(value.detach().float().mean()) for name, value in metrics.items()}
                self.log_now(self.ranks.mean_row(row))

    def _descend(self, loss: Tensor, counted: bool) -> None:
        self._descent(loss, counted)

    def _set_rates(self) -> None:
        rates = self.rates()
        for group in cast(LightningOptimizer, self.optimizers()).param_groups if rates else ():
            group["lr"] = rates.get(group["name"], group["lr"])
