"""JSRL (Uchendu et al. 2022, https://arxiv.org/abs/2204.02372): a given policy begins each episode."""

from typing import ClassVar, Literal

import numpy as np
import torch

from o2o_lightning.errors import at_least
from o2o_lightning.methods.method import FloatArray, Source, Task
from o2o_lightning.methods.rlpd import RLPD
from o2o_lightning.nn.actor import Actor, StochasticActor
from o2o_lightning.nn.targets import frozen_copy


class JSRL(RLPD):
    """The guide acts in the first h steps of an episode, the learner behind them; the learner alone is evaluated.

    Learns: a new squashed Gaussian and new critics. Frozen: the guide, a policy of any family.

    Args:
        horizon: h at the beginning.
        switch: h falls with the ``curriculum``, or is drawn anew for each episode, ``random``, from 0 to ``horizon``.
        stages: values of h on its way to 0.
        window, tolerance: the next one comes when the mean return of the last ``window`` training episodes, which guide
            and learner have played together, is no worse than the best such mean less this share of its size.
    """

    name: ClassVar[str] = "jsrl"
    actor_kind: ClassVar[str | None] = None
    needs_source: ClassVar[bool] = True
    horizon: int = 100
    switch: Literal["curriculum", "random"] = "curriculum"
    stages: int = 10
    window: int = 5
    tolerance: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("stages", "window"):
            at_least(f"--model.{name}", getattr(self, name), 1)

    def build(self, task: Task, source: Source | None = None) -> None:
        self.take(*self.fresh(task))
        del self.offline_actor
        assert source is not None
        self.guide = frozen_copy(source.build_actor())
        self.step_now = 0
        self.register_buffer("guided", torch.tensor(self.horizon))  # h
        self.register_buffer("stage", torch.tensor(0))
        self.register_buffer("best", torch.tensor(-torch.inf, dtype=torch.float64))
        self.register_buffer("recent", torch.zeros(self.window, dtype=torch.float64))
        self.register_buffer("played", torch.tensor(0))  # episodes at this stage

    @property
    def offline_actor(self) -> Actor:
        """The guide: it is what the learner is measured by."""
        return self.guide  # type: ignore[no-any-return]

    def before_step(self, step: int, last_return: float | None, generator: np.random.Generator) -> None:
        self.step_now = step
        if step:
            return
        if self.switch == "random":
            self.guided.fill_(int(generator.integers(self.horizon + 1)))
        elif last_return is not None:
            self.judge(last_return)

    def judge(self, last_return: float) -> None:
        """Takes note of a training episode's return, and shortens h where the two are as good together as ever."""
        self.recent.copy_(torch.cat((self.recent[1:], self.recent.new_tensor([last_return]))))
        self.played.add_(1)
        mean, best = float(self.recent.mean()), float(self.best)
        if int(self.played) < self.window:
            return
        if best == -np.inf:
            self.best.fill_(mean)
        elif mean >= best - self.tolerance * abs(best):
            self.best.fill_(max(best, mean))
            self.stage.add_(1).clamp_(max=self.stages)
            self.guided.fill_(self.horizon * (self.stages - int(self.stage)) // self.stages)
            self.played.zero_()

    def act(self, observation: FloatArray, generator: np.random.Generator) -> FloatArray:
        if self.step_now >= int(self.guided):
            return super().act(observation, generator)
        guide = self.guide
        return guide.explore(observation, generator) if isinstance(guide, StochasticActor) else guide.act(observation)
