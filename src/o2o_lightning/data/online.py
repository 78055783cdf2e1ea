"""The environment-interacting DataModule of the online phase."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDictBase
from torch import Tensor

from o2o_lightning.data.module import OfflineData
from o2o_lightning.data.stream import count_chunks, next_boundary
from o2o_lightning.envs.make import make_env
from o2o_lightning.envs.snapshot import pack, unpack
from o2o_lightning.errors import UserError
from o2o_lightning.replay.buffer import Mix
from o2o_lightning.replay.interaction import Interaction
from o2o_lightning.replay.ring import LabelledRing, Ring
from o2o_lightning.replay.table import nested
from o2o_lightning.seeds import environment_seed

Act = Callable[[NDArray[np.float32]], NDArray[np.float32]]


class OnlineData(OfflineData):
    """Steps the environment, keeps what it returned, and mixes it with the dataset.

    The environment makes one step, then the phase makes ``utd`` gradient updates, and so on until ``env_steps``: the
    loop is :meth:`o2o_lightning.phases.online.Online.train_chunk`.
    Several processes make a step each, then the updates together; the budget and every cadence count the steps of all.

    Args:
        env_steps: budget of environment steps; the phase ends after exactly as many.
        utd: gradient updates an environment step (update-to-data ratio).
        warmup_steps: environment steps, by the policy to be fine-tuned, before the first update.
        mix: ``half``, ``all``, ``part`` or ``none``; ``none`` needs no dataset.
        capacity: transitions that the online buffer of each process holds.
        kwargs: as in :class:`OfflineData`.
    """

    def __init__(
        self,
        env_steps: int = 100_000,
        utd: int = 1,
        warmup_steps: int = 1000,
        mix: Mix = "half",
        capacity: int = 2_000_000,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if env_steps < 1 or utd < 1 or warmup_steps < 0 or capacity < 1:
            raise UserError("--data.env_steps, utd and capacity must be at least 1, warmup_steps at least 0.")
        if self.dataset is None and mix != "none":
            raise UserError(f"no dataset: --data.mix {mix} draws from one. Pass --data.dataset, or --data.mix none.")
        self.budget, self.utd, self.warmup_steps, self.mix, self.capacity = env_steps, utd, warmup_steps, mix, capacity
        self.generator = np.random.default_rng()
        self.interaction: Interaction | None = None

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if self.interaction is not None:
            return
        seed = environment_seed(self.ranks.rank)
        self.generator = np.random.default_rng(seed)
        kept = 0 if self.store is None or self.mix in ("half", "none") else self.store.td_count
        own_steps = -(-self.budget // self.ranks.count)
        ring = self._ring(min(self.capacity, own_steps + kept))
        self.buffer.mix(self.mix, self.store, ring, self.rewards)
        self.preloaded = len(ring)
        self.interaction = start_interaction(self, ring, seed)

    def _ring(self, capacity: int) -> Ring:
        method = None if self.trainer is None else cast(Any, self.trainer).lightning_module.method
        if method is None or "return_to_go" not in method.needs:
            return Ring(capacity, *self.sizes())
        if self.mix in ("all", "part"):
            raise UserError(
                f"--data.mix {self.mix}: {method.name} needs each row's return, and the online buffer would begin with "
                "rows that have none. Pass --data.mix half, or none."
            )

        def label(reward: Tensor, terminated: Tensor, truncated: Tensor) -> Tensor:
            mapped = reward * self.rewards.scale + self.rewards.shift
            return method.returns_to_go(mapped, terminated, truncated)  # type: ignore[no-any-return]

        return LabelledRing(capacity, *self.sizes(), label)

    def train_dataloader(self) -> OnlineStream:  # type: ignore[override]
        return OnlineStream(self, self.budget, self.ranks.count)

    def step(self, explore: Act) -> None:
        """One environment step of this process; ``explore`` maps a raw observation ``[S]`` to an action ``[A]``."""
        assert self.interaction is not None
        self.interaction.step(explore)

    def updates_due(self, env_steps: int) -> int:
        """How many updates come after the environment's step ``env_steps``, in every process alike."""
        return self.utd if env_steps > self.warmup_steps and self._enough(env_steps) else 0

    def _enough(self, env_steps: int) -> bool:
        """Whether every process has two transitions to draw from: all must answer alike, or some would wait."""
        assert self.interaction is not None
        others = env_steps // self.ranks.count + self.preloaded if self.ranks.count > 1 else 2
        return len(self.interaction.buffer) >= 2 and others >= 2

    def transition_batch(self, device: torch.device) -> TensorDictBase:
        """One batch ``[B]``, ready for the networks."""
        rows = self.buffer.rows(self.batch_size, self.rows).to(device)
        return nested(self.prepare_rows(rows), torch.Size([self.batch_size]))

    def local_state(self) -> dict[str, Any]:
        assert self.interaction is not None
        return {
            **super().local_state(),
            "replay": self.buffer.rule.state_dict(),
            "exploration": pack(self.generator),
            "interaction": self.interaction.state(),
        }

    def load_local_state(self, state: dict[str, Any]) -> None:
        super().load_local_state(state)
        assert self.interaction is not None
        self.buffer.rule.load_state_dict(state["replay"])
        self.generator = unpack(state["exploration"])
        self.interaction.load_state(state["interaction"])

    def teardown(self, stage: str) -> None:
        super().teardown(stage)
        if stage == "fit" and self.interaction is not None:
            self.interaction.env.close()


class OnlineStream:
    """Chunks of the environment's clock: how many steps come next.

    A chunk covers at most ``chunk`` environment steps and never crosses an evaluation, so that evaluations,
    checkpoints and the budget fall on exact environment steps whatever the chunk size. ``stride``: environment steps
    that are made side by side, of which a chunk has a multiple.
    """

    def __init__(self, data: OfflineData, budget: int, stride: int = 1) -> None:
        self.data, self.budget = data, budget
        self.chunk = -(-data.chunk // stride) * stride

    def __len__(self) -> int:
        return self._chunks

    @cached_property
    def _chunks(self) -> int:
        # counted once, before the first chunk: Lightning compares it with the chunks that it has fetched
        start = cast(Any, self.data.trainer).lightning_module.env_steps
        return count_chunks(self.budget, self.chunk, self.data.eval_every, start=start)

    def __iter__(self) -> Iterator[int]:
        data, module = self.data, cast(Any, self.data.trainer).lightning_module
        while (clock := module.env_steps) < self.budget:
            yield min(self.chunk, next_boundary(clock, self.budget, data.eval_every) - clock)


def start_interaction(data: OfflineData, buffer: Ring, seed: int) -> Interaction:
    """A training environment at its first start state, writing to ``buffer``."""
    if data.env_id is None:
        raise UserError(
            f"dataset {data.dataset}: it does not name its environment, and the online phase needs one. "
            "Pass --data.env_id."
        )
    env_id, width, layout = data.env_id, data.sizes()[0], data.layout
    return Interaction(lambda: make_env(env_id, width, layout), buffer, seed)
