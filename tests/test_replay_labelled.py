"""Online rows that know their return: written when their episode has ended, drawn beside the dataset's own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from o2o_lightning.data.module import OfflineData
from o2o_lightning.data.online import OnlineData
from o2o_lightning.errors import UserError
from o2o_lightning.methods.cal_ql import CalQL
from o2o_lightning.objectives.returns import discounted_returns
from o2o_lightning.phases.offline import Offline
from o2o_lightning.phases.online import Online
from o2o_lightning.replay.ring import LabelledRing

SIZES: dict[str, Any] = {"hidden": (8, 8), "critic_hidden": (8, 8), "samples": 2}


def label(reward: Tensor, terminated: Tensor, truncated: Tensor) -> Tensor:
    return discounted_returns(reward, terminated | truncated, 0.5)


def ring(capacity: int = 8) -> LabelledRing:
    return LabelledRing(capacity, 2, 1, label)


def add(to: LabelledRing, reward: float, terminated: bool = False, truncated: bool = False) -> None:
    observation = np.full(2, reward, np.float32)
    to.add(observation, np.zeros(1, np.float32), reward, observation + 1, terminated, truncated)


def test_rows_are_there_when_their_episode_has_ended_and_know_their_return() -> None:
    rows = ring()
    add(rows, 1.0)
    add(rows, 2.0)
    assert len(rows) == 0
    add(rows, 4.0, terminated=True)
    add(rows, 8.0)
    assert rows["return_to_go"].tolist() == [3.0, 4.0, 4.0]
    assert rows["reward"].tolist() == [1.0, 2.0, 4.0]
    assert rows["next", "terminated"].tolist() == [False, False, True]
    add(rows, 0.0, truncated=True)
    assert rows["return_to_go"].tolist() == [3.0, 4.0, 4.0, 8.0, 0.0]


def test_an_episode_under_way_is_part_of_the_state() -> None:
    rows, again = ring(), ring()
    for reward, ended in ((1.0, True), (2.0, False)):
        add(rows, reward, terminated=ended)
    again.load_state(rows.state())
    for each in (rows, again):
        add(each, 4.0, terminated=True)
    assert torch.equal(rows.rows, again.rows) and again["return_to_go"].tolist() == [1.0, 4.0, 4.0]


def test_an_episode_that_will_not_go_on_is_written_as_it_is() -> None:
    rows = ring()
    add(rows, 2.0)
    rows.truncate_last()
    assert rows["return_to_go"].tolist() == [2.0] and rows["next", "truncated"].tolist() == [True]


def test_both_halves_of_a_batch_hold_the_return_of_mapped_rewards(fit: Any, pendulum: str) -> None:
    offline = fit(
        lambda: Offline(CalQL(**SIZES)), lambda: OfflineData(dataset=pendulum, batch_size=32, eval_episodes=1), 2
    )
    seen: list[Any] = []

    class Watching(CalQL):
        def step(self, batch: Any, noise: Any) -> Any:
            seen.append({key: batch[key].clone() for key in ("reward", "return_to_go")})
            return super().step(batch, noise)

    data = lambda: OnlineData(  # noqa: E731
        dataset=pendulum, batch_size=32, eval_episodes=1, env_steps=220, warmup_steps=0, reward_scale=0.1, chunk=4
    )
    run = fit(lambda: Online(Watching(**SIZES), str(offline.checkpoint)), data)
    assert len(seen) == 21  # Pendulum's episodes have 200 steps: none before the first has ended
    buffer, store = run.module.data.buffer, run.module.data.store
    assert len(buffer) == len(store) + 200
    assert run.module.data.interaction.buffer["reward"].min() < -1.0
    for batch in seen:
        assert batch["return_to_go"].shape == batch["reward"].shape == (32,)
        assert (batch["return_to_go"] <= batch["reward"] + 1e-5).all()  # every reward is below 0
        assert batch["reward"].min() > -2.0  # scaled


def test_a_buffer_that_begins_with_rows_without_a_return_is_refused(fit: Any, pendulum: str) -> None:
    with pytest.raises(UserError, match=r"--data\.mix all: cal_ql needs each row.s return"):
        fit(
            lambda: Online(CalQL(**SIZES)),
            lambda: OnlineData(dataset=pendulum, env_steps=10, mix="all", batch_size=32, eval_episodes=1),
        )


def test_processes_whose_episodes_end_apart_are_refused(pendulum: str) -> None:
    data = OnlineData(dataset=pendulum, env_steps=10, batch_size=32)
    module = Online(CalQL(**SIZES))
    data.trainer = SimpleNamespace(lightning_module=module, global_rank=0, world_size=2)
    with pytest.raises(UserError, match=r"--trainer\.devices: cal_ql"):
        data.setup("fit")
