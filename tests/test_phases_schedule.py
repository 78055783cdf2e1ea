"""When the online phase acts by whom, updates and how often, from how much of the dataset (T49, T50, T85, T94)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conftest import Fit, Run
from test_replay_buffer import half

from o2o_lightning.data.module import OfflineData
from o2o_lightning.data.online import OnlineData
from o2o_lightning.errors import UserError
from o2o_lightning.methods.cal_ql import CalQL
from o2o_lightning.methods.rlpd import RLPD
from o2o_lightning.phases.offline import Offline
from o2o_lightning.phases.online import Online
from o2o_lightning.replay.buffer import Replay

SIZES: dict[str, Any] = {"hidden": (8, 8), "critic_hidden": (8, 8), "critics": 2}
EPISODE = 7


class Watched(Online):
    """Notes the updates that were made when each environment step began, and whether its action was uniform."""

    def explore(self, observation: Any) -> Any:
        action = super().explore(observation)
        self.__dict__.setdefault("seen", []).append((self.updates, self.uniform))
        return action


def updates(run: Run) -> list[int]:
    """Made before each environment step, and at the end."""
    return [count for count, _ in run.module.seen] + [run.module.updates]


def play(fit: Fit, pendulum: str, method: Any = RLPD, start: str | None = None, **options: Any) -> Run:
    settings = {"env_steps": 24, "warmup_steps": 0, "batch_size": 8, "eval_episodes": 1, "eval_every": 0, **options}
    rule = {"policy_every": 1} if method is RLPD else {"samples": 2}
    data = OnlineData(dataset=pendulum, env_kwargs={"max_episode_steps": EPISODE}, **settings)
    return fit(lambda: Watched(method(**SIZES, **rule), start), data)


def test_t49_after_each_whole_episode_come_as_many_updates_as_it_had_steps_times_the_ratio(fit: Fit, pendulum: str):
    found = updates(play(fit, pendulum, CalQL, collect="episode", utd=2))
    assert found == [2 * (step // EPISODE) * EPISODE for step in range(25)]


def test_updates_may_wait_for_so_many_steps_and_the_first_round_may_have_more(fit: Fit, pendulum: str):
    found = updates(play(fit, pendulum, collect=5, first_round=3, warmup_steps=2))
    assert found == [0] * 5 + [15] * 5 + [20] * 5 + [25] * 5 + [30] * 5


def test_who_acts_in_the_warm_up_and_whether_anything_learns_are_two_questions(fit: Fit, pendulum: str):
    uniform = lambda run: [uniform for _, uniform in run.module.seen]  # noqa: E731
    learning = play(fit, pendulum, warmup_steps=6, warmup_by="uniform", warmup_learns=True)
    assert uniform(learning) == [True] * 6 + [False] * 18
    assert updates(learning)[:4] == [0, 0, 1, 2]  # from the second transition on
    frozen = play(fit, pendulum, warmup_steps=6, warmup_by="policy")
    assert not any(uniform(frozen)) and updates(frozen)[:9] == [0] * 7 + [1, 2]
    plain = play(fit, pendulum, warmup_steps=6)
    assert uniform(plain) == [True] * 7 + [False] * 17 and updates(plain) == updates(frozen)


@pytest.mark.parametrize(
    ("rule", "moments", "steps"),
    [(RLPD, "method", set()), (RLPD, "carried", {12.0}), (CalQL, "method", {12.0}), (CalQL, "fresh", set())],
)
def test_t85_adams_moments_go_on_or_begin_anew_as_it_is_asked_for(
    rule: Any, moments: Any, steps: set[float], fit: Fit, pendulum: str
):
    batch: dict[str, Any] = {"dataset": pendulum, "batch_size": 8, "eval_episodes": 1}
    before = fit(lambda: Offline(CalQL(**SIZES, samples=2)), lambda: OfflineData(**batch), 12)
    data = OnlineData(**batch, env_steps=3, warmup_steps=0)
    run = fit(lambda: Online(rule(**SIZES), str(before.checkpoint), moments=moments), data)
    assert {float(moment["step"]) for moment in run.start_moments.values()} == steps


def shares(buffer: Replay, ring: Any, count: int = 256, batches: int = 40) -> list[int]:
    """Offline rows of each batch: the ring's observations begin at 1000."""
    generator = torch.Generator().manual_seed(0)
    drawn = [buffer.layout.columns(buffer.rows(count, generator))["observation"][:, 0] for _ in range(batches)]
    assert all(len(rows) == count for rows in drawn)
    return [int((rows < 1000).sum()) for rows in drawn]


def add(ring: Any, count: int) -> None:
    for i in range(count):
        ring.add(np.full(3, 1000 + i), np.zeros(2), float(i), np.full(3, 1001 + i), False, False)


def test_t50_of_nine_rows_offline_to_one_online_a_batch_has_as_many_and_by_halves_half():
    buffer, store, ring = half(901, capacity=2000)  # one row has no successor
    assert store.td_count == 900
    add(ring, 100)
    for mode, share, expected in (("proportional", 0.5, 230), ("half", 0.5, 128), ("half", 0.9, 230)):
        buffer.mix(mode, store, ring, share=share)  # type: ignore[arg-type]
        assert {*shares(buffer, ring)} == {expected}
    buffer.mix("proportional", store, ring)
    add(ring, 800)
    assert {*shares(buffer, ring)} == {128}


def test_a_proportion_that_has_changed_is_the_saved_ones_too():
    first, second = half(901, capacity=2000), half(901, capacity=2000)
    for buffer, store, ring in (first, second):
        buffer.mix("proportional", store, ring)
        add(ring, 100)
    generator, other = torch.Generator().manual_seed(0), torch.Generator()
    for _ in range(3):
        first[0].rows(256, generator)
    other.set_state(generator.get_state())
    second[0].rule.load_state_dict(first[0].rule.state_dict())
    for buffer, _, ring in (first, second):
        assert shares(buffer, ring, batches=1) == [230]
    for count in (0, 50):
        for _, _, ring in (first, second):
            add(ring, count)
        for _ in range(20):
            assert torch.equal(first[0].rows(256, generator), second[0].rows(256, other))


def test_a_share_beyond_all_and_no_steps_between_rounds_are_refused():
    for option, value in (("offline_share", 1.5), ("collect", 0), ("first_round", 0)):
        with pytest.raises(UserError, match=rf"--data\.{option} {value}"):
            OnlineData(dataset="embedded:hopper-medium", **{option: value})  # type: ignore[arg-type]
