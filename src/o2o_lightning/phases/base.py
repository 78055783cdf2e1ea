"""What all phases share: the step clock, one optimizer, noise, hand-over, evaluation."""

from collections.abc import Iterable
from typing import Any, ClassVar, cast

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.core.optimizer import LightningOptimizer
from tensordict import TensorDictBase
from torch import Tensor, nn

from o2o_lightning.callbacks.evaluation_loop import EvaluationLoop
from o2o_lightning.callbacks.monitors import Monitors, saving_steps
from o2o_lightning.checkpoint.handover import check_dataset, read_handover
from o2o_lightning.engine.compiled import CompiledEngine
from o2o_lightning.engine.engine import Ask, Engine, Update
from o2o_lightning.engine.noise import NoiseBlocks
from o2o_lightning.errors import at_least
from o2o_lightning.methods.method import Loss, Method, Moment, Task
from o2o_lightning.nn.critics import lay_ensembles_side_by_side
from o2o_lightning.phases import hardware
from o2o_lightning.phases.contract import check_sizes
from o2o_lightning.phases.descent import Descent, Draw
from o2o_lightning.phases.evaluating import Evaluating
from o2o_lightning.phases.replays import CHUNKS, Compile, Replays, replay_note, replays_of, wanted, why_not
from o2o_lightning.ranks import Ranks
from o2o_lightning.seeds import noise_seed


class Phase(Evaluating):
    """Base of all phases: where a method's batches come from, when it ends, what it hands on.

    **Clock.** One gradient update is one :meth:`learn`, whatever number of losses it descends: ``trainer.global_step``
    counts them. Environment steps are the second clock. A ``training_step`` consumes a chunk of batches or of those.

    Args:
        method: what is descended.
        init_from: checkpoint of the phase before.
        compile: how updates run. ``auto``: captured whole on a GPU, step by step on a CPU; ``false``: step by step;
            ``true``: each step compiled into one graph, kept on the disk, which pays back in long runs; ``record``, for
            tests on a CPU: recorded and replayed as on a GPU, which saves nothing there.
        products: how exact those of 32 bits are in this phase, ``highest`` after it; None for what torch was told.
    """

    phase: ClassVar[str]
    accepts: ClassVar[tuple[str, ...]] = ()
    clock_name: ClassVar[str] = "updates"
    evaluates: ClassVar[bool] = True

    def __init__(
        self, method: Method, init_from: str | None = None, compile: Compile = "auto", products: hardware.Digits = None
    ) -> None:
        super().__init__()
        if compile is True:
            hardware.check_compiler()
        self.automatic_optimization = False
        self.method, self.init_from, self.compiling, self.products = method, init_from, compile, products
        self.updates = 0
        self.env_steps = 0
        self.scores: dict[str, float | None] = {}
        self.returns: dict[str, float] = {}
        self.config: dict[str, Any] = {}
        self.source = None
        self.ranks = Ranks()
        self._replays: Replays | None = None
        self._engine: Engine | None = None
        self._noise: NoiseBlocks | None = None
        self.keep_hyperparameters()

    # ---- Lightning -----------------------------------------------------------------------------------------------

    @property
    def compiles(self) -> bool:
        """Whether each step is compiled."""
        return self.compiling is True

    @property
    def clock(self) -> int:
        """Gradient updates, or environment steps where the phase interacts."""
        return self.updates

    @property
    def algorithm(self) -> str:
        """What ran, as results and checkpoints name it."""
        return self.method.label

    @property
    def engine(self) -> Engine:
        """What evaluates the method's steps."""
        if self._engine is None:
            make = CompiledEngine if self.compiles else Engine
            self._engine = make(self.method) if self.lane is None else self.lane.engine(self.method)
        return self._engine

    @property
    def noise(self) -> NoiseBlocks:
        """The phase's own random stream, so that nothing else's draws can shift it."""
        if self._noise is None:
            self._noise = NoiseBlocks(noise_seed(self.global_rank), self.device)
        return self._noise

    @property
    def total(self) -> int:
        """The value of :attr:`clock` at which the phase ends."""
        return int(self.trainer.max_steps)

    @property
    def evaluation_period(self) -> int:
        """How much of :attr:`clock` passes between evaluations; 0 for only at the end."""
        return self.data.eval_every_updates

    @property
    def evaluates_at_start(self) -> bool:
        """Whether it begins with an evaluation."""
        return False

    @property
    def waits_for_scores(self) -> bool:
        """Whether training depends on each evaluation's result, so that none can be left to the background."""
        return False

    @property
    def cadence(self) -> int:
        """Gradient updates between two moments, beside evaluations, that a chunk must end at; 0 for none."""
        return 0

    @property
    def cadences(self) -> list[int]:
        """:attr:`cadence`, and the steps between the checkpoints that callbacks save."""
        return [self.cadence, *saving_steps(self.trainer)]

    @property
    def chunk(self) -> int:
        """Gradient updates of a ``training_step`` on a dataset alone; at most one of many brings a row of metrics."""
        size, rows = int(self.data.chunk), self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not wanted(self) or why_not(self) is not None:
            return size
        return size * max(1, min(CHUNKS, rows // size if rows else CHUNKS))

    @property
    def is_built(self) -> bool:
        """Whether there are networks: since another run of a Trainer's, or as a checkpoint had them."""
        return hasattr(self, "normalizer")

    def setup(self, stage: str) -> None:
        hardware.settle_products(self.trainer, self.products)
        data, self.ranks = self.data, Ranks.of(self.trainer)
        if self.is_built:
            data.normalizer, self.method.ranks = self.normalizer, self.ranks
            check_sizes(self.policy(), data.sizes())
            return
        hardware.check_hardware(self.trainer)
        if self.compiles:
            hardware.check_compilable(self.trainer, self.ranks.count)
        if self.init_from is not None:
            self.source = read_handover(self.init_from, self.accepts, f"--phase {self.phase}")
            self.normalizer = self.source.build_normalizer()
            self.scores, self.returns = dict(self.source.scores), dict(self.source.returns)
            self.source.check_policy(self.method.actor_kind, data.sizes(), self.method.name, data.layout)
            check_dataset(f"checkpoint {self.init_from}", self.source.manifest, data.manifest())
        else:
            self.normalizer = data.fit_normalizer()
        data.normalizer = self.normalizer
        self.method.ranks = self.ranks
        self.method.build(self.task(), self.source)

    def task(self) -> Task:
        """What the method is told of the data and the environment."""
        return Task(*self.data.sizes(), total=self.total)

    def on_fit_start(self) -> None:
        store = self.data.store
        if store is not None and "return_to_go" in self.method.needs:
            ends = store["next", "terminated"], store["next", "truncated"]
            store.attach("return_to_go", self.method.returns_to_go(self.data.rewards(store["reward"]), *ends))
        if store is not None and "next_action" in self.method.needs:
            action = store["action"]  # of an episode's last row it is another's, and no one asks for it
            store.attach("next_action", torch.cat((action[1:], action[-1:])))
        self.data.precompute(self.method.cache)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups = []
        for name, (part, rate) in self.method.learners().items():
            at_least(f"--model.{name}_lr", rate, 0)
            prefix = next(key for key, module in [*self.named_modules(), *self.named_parameters()] if module is part)
            named = [(prefix, part)] if isinstance(part, nn.Parameter) else list(part.named_parameters(prefix))
            groups.append({"params": named, "lr": rate, "name": name})
        optimizer = self.method.optimizer(groups)
        if self.source is not None and self.carries_moments(self.source.phase):
            self.source.carry_moments(optimizer, self.method.moment_scales(self.sampled))
        return optimizer

    def carries_moments(self, phase: str) -> bool:
        """Whether Adam's moments of that phase go on in this one."""
        return phase in self.method.carries_moments

    def configure_callbacks(self) -> list[Callback]:
        return [EvaluationLoop(), *self.callbacks(), Monitors()] if self.trainer.state.fn == "fit" else []

    def callbacks(self) -> list[Callback]:
        """What the phase itself needs of callbacks, beside its evaluations."""
        return []

    def on_train_end(self) -> None:
        self.make_sure()

    def on_train_start(self) -> None:
        if hardware.forms_at_once(self.trainer, self.compiles):
            lay_ensembles_side_by_side(self.method)
        self._noise = self.noise  # of this run's seed, and not of another's in whose thread an update may be made
        self._replays = replays_of(self)

    def training_step(self, chunk: Any, batch_idx: int) -> None:
        self.descent = Descent(self)
        if self._replays is not None:
            self._replays.begin()
        self.train_chunk(chunk)
        (self._replays or self.descent).end_chunk()

    def train_chunk(self, chunk: Any) -> None:
        """Learns from a chunk of what the DataModule streams: here, the rows of batches."""
        self.make([Draw(chunk)])

    def make(self, draws: Iterable[Draw]) -> None:
        """Makes gradient updates, one after the other: replayed whole, or loss by loss."""
        (self._replays or self.descent).make(draws)

    def make_sure(self) -> None:
        """Raises where a loss was not finite: before anything is said of the networks, or saved."""
        if self._replays is not None:
            self._replays.check()

    def end_replays(self) -> None:
        """From now on updates are made loss by loss; what they took of a GPU's memory is free."""
        self._replays = None
        self.data.let_go()

    def teardown(self, stage: str) -> None:
        self._replays = None
        self.end_evaluations()
        hardware.set_products("highest" if self.products and self.lane is None else None)

    def learn(
        self, batch: TensorDictBase, place: int = 0, new_steps: int = 1, noise: dict[str, Tensor] | None = None
    ) -> Update:
        """One gradient update, which asks for the losses that it descends; with its own ``noise`` where none is given.

        For ``place`` and ``new_steps`` see :class:`~o2o_lightning.methods.method.Moment`.
        """
        method, descent, due = self.method, self.descent, self.logs_at(self.updates + 1)
        moment = Moment(self.updates, self.env_steps, place, new_steps)
        metrics: dict[str, Tensor] = {}
        if rates := method.rates(moment):
            for group in cast(LightningOptimizer, self.optimizers()).param_groups:
                group["lr"] = rates.get(group["name"], group["lr"])
        for name, value in method.schedules(moment).items():
            method.get_buffer(name).fill_(value)
        noise = noise or self.noise.draw(method.noise(tuple(batch["action"].shape)))
        for i, step in enumerate(self.engine.steps(moment)):
            loss = yield Ask(step, batch, noise)
            descent.record.add(moment.update, batch, loss.value, loss.metrics)
            descent(loss.value, counted=i == 0)
            self.settle(loss)
            if due:
                metrics.update(loss.metrics)
        self.updates += 1
        if due:
            self.log_means(metrics)

    def logs_at(self, updates: int) -> bool:
        """Whether a row of metrics is due after so many updates."""
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return every > 0 and updates % every == 0

    def settle(self, loss: Loss) -> None:
        """Takes over what a descended loss brings beside its gradient."""
        if loss.state:
            self.engine.settle(loss)

    # ---- for subclasses and callbacks ----------------------------------------------------------------------------

    def local_state(self) -> dict[str, Any]:
        """What this process needs to go on exactly, and a checkpoint does not hold: tensors and primitives."""
        return {"noise": self.noise.state()}

    def load_local_state(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`local_state`, when training starts."""
        self.noise.load_state(state["noise"])

    def facts(self) -> dict[str, Any]:
        """What ``summary.json`` says of this phase beyond what it says of all."""
        return self.method.facts()

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

    def compile_note(self, updates: int) -> str | None:
        """What a user should know of compiling a run of so many updates."""
        if self.lane is not None and (self.lane.place or not wanted(self)):
            return None  # one of the seeds says it
        if wanted(self):
            return replay_note(self)
        return hardware.compile_note(self.device, self.compiles, self.method.pays_back, updates)

    def sampled(self, count: int = 2048) -> TensorDictBase:
        """Transitions ``[count]`` of the dataset, ready for the networks, and always the same: a measurement's own."""
        store = self.data.needed("what an option asks for is measured on its states")
        return self.data.prepare(store.gather(store.sample_rows(count, torch.Generator().manual_seed(0))), self.device)
