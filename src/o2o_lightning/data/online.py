"""The environment-interacting DataModule of the online phase."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDictBase
from torch import Tensor

from o2o_lightning.data.interacting import InteractingData
from o2o_lightning.errors import UserError
from o2o_lightning.replay.balanced import Entry
from o2o_lightning.replay.buffer import Mix
from o2o_lightning.replay.interaction import Interaction
from o2o_lightning.replay.ring import LabelledRing, Ring
from o2o_lightning.replay.samplers import Numbers
from o2o_lightning.replay.table import nested

Act = Callable[[NDArray[np.float32]], NDArray[np.float32]]
PRELOADED = ("all", "part")  # modes in which the online buffer begins with rows of the dataset


@dataclass(eq=False, repr=False)
class OnlineData(InteractingData):
    """Steps the environment, keeps what it returned, and mixes it with the dataset.

    The environment makes ``collect`` steps, then the phase makes ``utd`` gradient updates for each, and so on until
    ``env_steps``: the loop is :meth:`o2o_lightning.phases.online.Online.train_chunk`.
    Several processes make a step each, then the updates together; the budget and every cadence count the steps of all.

    Args:
        utd: gradient updates an environment step (update-to-data ratio).
        collect: environment steps between two rounds of updates; ``episode``: a whole one. Beyond 1, of one process.
        first_round: how many times as many updates the first round has.
        warmup_steps: environment steps before the first update.
        warmup_by: who acts in them: a ``uniform`` draw, the ``policy``, or ``auto``: a policy that comes from a
            checkpoint, and else uniform actions until the first update (A7).
        warmup_learns: make the updates of the warm-up's steps, so that only who acts is another.
        mix: ``half``, ``proportional``, ``all``, ``part``, ``none`` or ``balanced``; ``none`` needs no dataset.
        offline_share: of each batch, in ``half``.
        seeds: random transitions of the dataset that the online buffer begins with, except in ``all`` and ``part``.
        entry: of ``balanced``: the priority of a new row.
        capacity: transitions that the online buffer of each process holds.
    """

    utd: int = 1
    collect: int | Literal["episode"] = 1
    first_round: int = 1
    warmup_steps: int = 1000
    warmup_by: Literal["auto", "uniform", "policy"] = "auto"
    warmup_learns: bool = False
    mix: Mix = "half"
    offline_share: float = 0.5
    seeds: int = 0
    capacity: int = 2_000_000
    entry: Entry = field(default_factory=Entry)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dataset is None and self.mix != "none":
            raise UserError(
                f"no dataset: --data.mix {self.mix} draws from one. Pass --data.dataset, or --data.mix none."
            )

    def rings(self) -> list[Ring]:
        method = None if self.trainer is None else self.module.method
        if ("priority" in getattr(method, "needs", ())) != (self.mix == "balanced"):
            raise UserError(
                "--data.mix balanced: it is for a method that weighs the rows of its batches, online=off2on, which "
                "needs it."
            )
        if self.collect != 1 and self.ranks.count > 1:
            raise UserError(f"--data.collect {self.collect}: it counts one process's steps. Pass --trainer.devices 1.")
        seeds = 0 if self.store is None else min(self.seeds, self.store.td_count)
        kept = self.store.td_count if self.store is not None and self.mix in PRELOADED else seeds
        own_steps = -(-self.budget // self.ranks.count)
        ring = self._ring(min(self.capacity, own_steps + kept))
        self.buffer.mix(self.mix, self.store, ring, self.rewards, self.entry, self.offline_share)
        if self.store is not None and self.mix not in PRELOADED and seeds:
            ring.extend(self.store.gather(self.store.sample_rows(seeds, self.rows)))
        self.preloaded = len(ring)
        return [ring]

    @property
    def interaction(self) -> Interaction:
        """The training environment of this process."""
        return self.interactions[0]

    @property
    def steps_before_updates(self) -> int:
        return 0 if self.warmup_learns else self.warmup_steps

    def _ring(self, capacity: int) -> Ring:
        method = None if self.trainer is None else self.module.method
        if method is None or "return_to_go" not in method.needs:
            return Ring(capacity, *self.sizes())
        if self.mix in PRELOADED or self.seeds:
            option = f"seeds {self.seeds}" if self.seeds else f"mix {self.mix}"
            raise UserError(
                f"--data.{option}: {method.name} needs each row's return, and the online buffer would begin with rows "
                "that have none. Pass --data.mix half, or none, and no --data.seeds."
            )
        if self.ranks.count > 1:
            raise UserError(
                f"--trainer.devices: {method.name} learns online from episodes that have ended, and those of several "
                "processes end at different steps. Pass --trainer.devices 1."
            )

        def label(reward: Tensor, terminated: Tensor, truncated: Tensor) -> Tensor:
            return method.returns_to_go(self.rewards(reward), terminated, truncated)  # type: ignore[no-any-return]

        return LabelledRing(capacity, *self.sizes(), label)

    def step(self, explore: Act) -> None:
        """One environment step of this process; ``explore`` maps a raw observation ``[S]`` to an action ``[A]``."""
        self.interaction.step(explore)

    def updates_due(self, env_steps: int) -> int:
        """How many updates come after the environment's step ``env_steps``, in every process alike."""
        if env_steps <= self.steps_before_updates or not self._enough(env_steps):
            return 0
        if self.collect == "episode":
            steps = 0 if self.interaction.episode_length else self.interaction.last_length
        else:
            steps = 0 if env_steps % self.collect else self.collect
        return self.utd * steps * (1 if self.module.updates else self.first_round)

    def _enough(self, env_steps: int) -> bool:
        """Whether every process has two transitions to draw from: all must answer alike, or some would wait."""
        others = env_steps // self.ranks.count + self.preloaded if self.ranks.count > 1 else 2
        return len(self.interaction.buffer) >= 2 and others >= 2

    def numbers(self, shape: Any = None) -> Numbers:
        """Which rows the next batch has."""
        return self.buffer.numbers(self.batch_size, self.rows)

    def batches(self, numbers: Numbers) -> Iterator[TensorDictBase]:
        """The one batch ``[B]`` of those ``numbers``, ready for the networks."""
        rows = self.buffer.pick(numbers).to(self.module.device)
        yield nested(self.prepare_rows(rows), rows.shape[:1])

    def picked_of_all(self, each: Sequence[Any], numbers: Sequence[Numbers]) -> list[Tensor]:
        rows = [data.buffer.pick(own) for data, own in zip(each, numbers, strict=True)]
        return [torch.stack(rows).unsqueeze(1)]

    def local_state(self) -> dict[str, Any]:
        own = {"replay": self.buffer.rule.state_dict(), "interaction": self.interaction.state()}
        return super().local_state() | own

    def load_local_state(self, state: dict[str, Any]) -> None:
        super().load_local_state(state)
        self.interaction.load_state(state["interaction"])
        self.buffer.rule.load_state_dict(state["replay"])
