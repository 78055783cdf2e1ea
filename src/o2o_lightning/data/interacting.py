"""What the DataModules that step an environment have in common."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from o2o_lightning.data.module import OfflineData
from o2o_lightning.data.raw import wrong
from o2o_lightning.data.stream import Chunks
from o2o_lightning.envs.snapshot import pack, unpack
from o2o_lightning.replay.interaction import Interaction
from o2o_lightning.seeds import environment_seed


@dataclass(eq=False, repr=False)
class InteractingData(OfflineData):
    """As :class:`OfflineData`, with training environments that each write to a ring of their own.

    Args:
        env_steps: budget of environment steps; the phase ends after exactly as many.
    """

    env_steps: int = 100_000

    def __post_init__(self) -> None:
        super().__post_init__()
        self.budget = self.env_steps
        self.generator = np.random.default_rng()
        self.interactions: list[Interaction] = []

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if self.interactions or stage != "fit":
            return
        self.generator = np.random.default_rng(environment_seed(self.ranks.rank))
        for number, ring in enumerate(self.rings()):
            self.interactions.append(self._start(ring, environment_seed(self.ranks.rank, number)))

    def rings(self) -> Sequence[Any]:
        """Where each environment of this process writes to; from now on the run's buffer has them."""
        raise NotImplementedError

    @property
    def stride(self) -> int:
        """Environment steps that all processes make side by side, of which a chunk has a multiple."""
        return self.ranks.count

    @property
    def steps_before_updates(self) -> int:
        """Environment steps up to which no gradient update has been made."""
        raise NotImplementedError

    def train_dataloader(self) -> Chunks:
        module = self.module
        chunk = -(-self.chunk // self.stride) * self.stride
        return Chunks(lambda: module.env_steps, self.budget, chunk, (self.eval_every,))

    def local_state(self) -> dict[str, Any]:
        return {**super().local_state(), "exploration": pack(self.generator)}

    def load_local_state(self, state: dict[str, Any]) -> None:
        super().load_local_state(state)
        self.generator = unpack(state["exploration"])

    def teardown(self, stage: str) -> None:
        super().teardown(stage)
        if stage == "fit":
            for interaction in self.interactions:
                interaction.env.close()

    def on_exception(self, exception: BaseException) -> None:
        for interaction in self.interactions:
            with contextlib.suppress(Exception):  # what is wrong has been said
                interaction.env.close()

    def _start(self, ring: Any, seed: int) -> Interaction:
        """A training environment at its first start state, writing to ``ring``."""
        if self.env is None:
            unnamed = "it does not name its environment, and the online phase needs one. Pass --data.env_id."
            raise wrong(f"{self.dataset}", unnamed)
        return Interaction(self.env.make, ring, seed, self.module.others_go_on if self.env_process else None)
