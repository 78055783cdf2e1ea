from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from data_files import env_of, raw_of
from hypothesis import given, settings
from hypothesis import strategies as st

from o2o_lightning.data.build import build_store
from o2o_lightning.errors import UserError
from o2o_lightning.objectives.returns import discounted_returns
from o2o_lightning.replay.buffer import Replay
from o2o_lightning.replay.store import TransitionStore

KINDS = st.lists(st.sampled_from(["on", "on", "on", "terminated", "truncated"]), min_size=1, max_size=60)
quick = settings(max_examples=40, deadline=None)


def store_of(kinds: list[str], next_observations: bool = False, rewards: np.ndarray | None = None) -> TransitionStore:
    flags = [np.array([kind == name for kind in kinds]) for name in ("terminated", "truncated")]
    return build_store(raw_of(*flags, rewards=rewards, next_observations=next_observations), env_of())


def plain_returns(rewards: list[float], stops: list[bool], discount: float) -> list[float]:
    out = []
    for i in range(len(rewards)):
        total, factor = 0.0, 1.0
        for j in range(i, len(rewards)):
            total += factor * rewards[j]
            factor *= discount
            if stops[j]:
                break
        out.append(total)
    return out


@quick
@given(KINDS)
def test_the_td_rows_are_those_of_d4rls_qlearning_convention(kinds: list[str]) -> None:
    store = store_of(kinds)
    first = kinds[:-1]
    rows = list(range(len(kinds))) if store.td_rows is None else store.td_rows.tolist()
    assert len(rows) == store.td_count == store.manifest.td_transitions
    assert len(rows) == len(kinds) - 1 - first.count("truncated")
    assert all(kinds[row] != "truncated" for row in rows)
    assert [row for row in range(len(first)) if first[row] == "terminated"] == [
        row for row in rows if kinds[row] == "terminated"
    ]


@quick
@given(KINDS)
def test_with_next_observations_every_row_is_a_td_row(kinds: list[str]) -> None:
    store = store_of(kinds, next_observations=True)
    assert store.td_rows is None and store.td_count == len(kinds)
    successor = store.leaves["next", "observation"]
    torch.testing.assert_close(successor, store.leaves["observation"] + 1, rtol=0, atol=0)


@quick
@given(KINDS)
def test_a_successor_never_belongs_to_another_episode(kinds: list[str]) -> None:
    store = store_of(kinds)
    episode = torch.empty(len(kinds), dtype=torch.long)
    for number, (start, stop) in enumerate(store.episodes.tolist()):
        episode[start:stop] = number
    successor = store.leaves["next", "observation"][:, 0].long()
    assert torch.equal(episode[successor], episode)
    inside = torch.tensor([kind == "on" for kind in kinds])
    inside[-1] = False
    assert torch.equal(successor, torch.arange(len(kinds)) + inside)


@quick
@given(KINDS)
def test_episodes_cover_the_rows_and_end_at_flags(kinds: list[str]) -> None:
    store = store_of(kinds)
    covered = [row for start, stop in store.episodes.tolist() for row in range(start, stop)]
    assert covered == list(range(len(kinds)))
    for (start, stop), complete in zip(store.episodes.tolist(), store.complete.tolist(), strict=True):
        assert all(kind == "on" for kind in kinds[start : stop - 1])
        assert complete == (kinds[stop - 1] != "on")


def test_a_timeout_keeps_its_bootstrap() -> None:
    store = store_of(["on", "truncated", "on", "terminated"], next_observations=True)
    row = store.gather(torch.tensor([1]))["next"]
    assert not row["terminated"].item() and row["truncated"].item()


def test_a_row_flagged_both_ways_is_terminal_and_ends_its_episode() -> None:
    store = build_store(raw_of(np.array([False, True, False]), np.array([False, True, False])), env_of(horizon=2))
    assert store.leaves["next", "terminated"].tolist() == [False, True, False]
    assert store.episodes.tolist() == [[0, 2], [2, 3]] and store.complete.tolist() == [True, False]
    assert store.td_count == 2  # the last row has no successor; the terminal one needs none


@quick
@given(KINDS, st.floats(0, 1), st.integers(0, 2**31 - 1))
def test_returns_to_go_are_a_plain_loops(kinds: list[str], discount: float, seed: int) -> None:
    rewards = np.random.default_rng(seed).normal(size=len(kinds)).astype(np.float32)
    ends = [kind != "on" for kind in kinds]
    expected = torch.tensor(plain_returns(rewards.tolist(), ends, discount), dtype=torch.float32)
    found = discounted_returns(torch.from_numpy(rewards), torch.tensor(ends), discount)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_long_returns_do_not_depend_on_block_borders(monkeypatch: pytest.MonkeyPatch) -> None:
    rewards, end = torch.arange(30.0), torch.arange(30) == 20
    whole = discounted_returns(rewards, end, 0.9)
    monkeypatch.setattr("o2o_lightning.objectives.returns.BLOCK", 7)
    assert torch.equal(discounted_returns(rewards, end, 0.9), whole)


def test_the_best_complete_episodes_are_found_and_an_unfinished_one_is_not() -> None:
    kinds = ["on", "terminated", "on", "truncated", "terminated", "on", "on"]
    store = store_of(kinds, rewards=np.array([1, 1, 5, 5, 3, 99, 99], np.float32))
    assert store.top_episodes(1).tolist() == [2]  # row 3 has no known successor
    assert store.top_episodes(1, td_only=False).tolist() == [2, 3]
    assert store.top_episodes(2).tolist() == [2, 4]
    assert store.top_episodes(99).tolist() == [0, 1, 2, 4]


def test_of_two_successes_the_shorter_ranks_higher_where_each_step_costs() -> None:
    kinds = ["on", "on", "terminated", "on", "terminated"]
    store = store_of(kinds, rewards=np.array([0, 0, 1, 0, 1], np.float32))
    assert store.top_episodes(1, td_only=False).tolist() == [0, 1, 2]
    assert store.top_episodes(1, td_only=False, scale=10.0, shift=-5.0).tolist() == [3, 4]


def test_ranking_a_dataset_without_a_complete_episode_is_refused() -> None:
    with pytest.raises(UserError, match="no complete episode to rank"):
        store_of(["on", "on"]).top_episodes(1)


def test_a_cut_before_the_horizon_is_no_complete_episode() -> None:
    truncated = np.zeros(25, np.bool_)
    truncated[[9, 19, 24]] = True
    store = build_store(raw_of(np.zeros(25, np.bool_), truncated), env_of(horizon=10))
    assert store.complete.tolist() == [True, True, False]
    assert store.manifest.complete_episodes == 2 and store.manifest.length_mean == 10


def test_timeouts_that_ignore_the_horizon_all_end_complete_episodes() -> None:
    truncated = np.zeros(25, np.bool_)
    truncated[[3, 11, 24]] = True
    store = build_store(raw_of(np.zeros(25, np.bool_), truncated), env_of(horizon=300))
    assert store.complete.all()


@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 2, 2), ()])
def test_gather_takes_any_index_shape(shape: tuple[int, ...]) -> None:
    store = store_of(["on"] * 30 + ["truncated"])
    rows = store.sample_rows(shape, torch.Generator().manual_seed(0))
    batch = store.gather(rows)
    assert batch.batch_size == torch.Size(shape)
    assert batch["observation"].shape == (*shape, 3) and batch["next", "terminated"].shape == shape
    assert torch.equal(batch["observation"][..., 0].long(), rows)
    assert torch.equal(batch["reward"], store.leaves["reward"][rows])


def test_sampling_is_uniform_over_td_rows_and_repeats_with_its_seed() -> None:
    store = store_of(["on", "truncated", "on", "terminated", "on"])
    drawn = store.sample_rows(3000, torch.Generator().manual_seed(1))
    assert torch.equal(drawn, store.sample_rows(3000, torch.Generator().manual_seed(1)))
    rows, counts = drawn.unique(return_counts=True)
    assert rows.tolist() == [0, 2, 3]
    assert (counts.double() / 1000 - 1).abs().max() < 0.1


def test_an_attached_cache_is_gathered_until_it_is_detached() -> None:
    store = store_of(["on"] * 6)
    store.attach("anchor", torch.arange(6.0)[:, None].expand(6, 2))
    assert store.gather(torch.tensor([4]))["anchor"].tolist() == [[4.0, 4.0]]
    store.attach("anchor", torch.zeros(6))
    assert store.gather(torch.tensor([4]))["anchor"].tolist() == [0.0]
    store.detach("anchor")
    assert "anchor" not in store.gather(torch.tensor([4]))
    with pytest.raises(ValueError, match="has 5 rows"):
        store.attach("anchor", torch.zeros(5))
    with pytest.raises(ValueError, match="own key"):
        store.attach("reward", torch.zeros(6))


def test_leaves_are_the_buffers_own_memory() -> None:
    store = store_of(["on"] * 6)
    assert store.leaves["reward"].data_ptr() == Replay(store)[:]["reward"].data_ptr() == store["reward"].data_ptr()


def test_a_memory_mapped_store_equals_one_in_memory(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("o2o_lightning.data.raw.blocks.__defaults__", (4,))
    terminated, truncated = np.zeros((2, 11), np.bool_)
    terminated[4] = truncated[7] = True
    raw = raw_of(terminated, truncated)
    small, mapped = build_store(raw, env_of()), build_store(raw, env_of(), tmp_path / "map.memmap")
    assert mapped.manifest.memmapped and not small.manifest.memmapped
    assert (tmp_path / "map.memmap").stat().st_size == 11 * small.layout.width * 4
    for key in ("observation", "action", "reward", ("next", "observation"), ("next", "terminated")):
        assert torch.equal(small.leaves[key], mapped.leaves[key])
        assert type(mapped.leaves[key]) is torch.Tensor
    rows = torch.arange(11)
    assert torch.equal(mapped.gather(rows)["observation"], small.gather(rows)["observation"])


def test_blocks_do_not_show_in_the_successors(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = ["on"] * 10 + ["terminated"] + ["on"] * 6
    whole = store_of(kinds)
    monkeypatch.setattr("o2o_lightning.data.raw.blocks.__defaults__", (3,))
    assert torch.equal(store_of(kinds).leaves["next", "observation"], whole.leaves["next", "observation"])


def test_native_actions_become_unit_actions() -> None:
    raw = dataclasses.replace(raw_of(np.zeros(12, np.bool_), np.zeros(12, np.bool_)), units="native")
    store = build_store(raw, env_of(-2.0, 2.0))
    torch.testing.assert_close(store.leaves["action"], torch.from_numpy(np.asarray(raw.actions)) / 2)
    assert torch.equal(build_store(raw, None).leaves["action"], torch.from_numpy(np.asarray(raw.actions)))


def test_actions_outside_the_bounds_are_counted_and_refused() -> None:
    raw = raw_of(np.zeros(12, np.bool_), np.zeros(12, np.bool_))
    outside = int((np.abs(np.asarray(raw.actions)) > 0.501).any(axis=1).sum())
    with pytest.raises(UserError, match=rf"'actions' of {outside} rows leave the bounds of Toy-v0, \[-0.5, 0.5\]"):
        build_store(raw, env_of(-0.5, 0.5))


def test_widths_other_than_the_environments_are_refused_in_one_line() -> None:
    raw = raw_of(np.zeros(4, np.bool_), np.zeros(4, np.bool_))
    with pytest.raises(UserError) as error:
        build_store(raw, env_of(actions=6))
    assert str(error.value) == (
        "dataset toy: 'actions' has 2 columns, Toy-v0 takes 6. Pass --data.env_id, "
        "or check the file with `o2o data check toy`."
    )
    with pytest.raises(UserError, match="'observations' has 3 columns, Toy-v0 gives 7"):
        build_store(raw, env_of(observations=7))


def test_the_manifest_is_json_and_its_returns_are_of_complete_episodes() -> None:
    kinds = ["on", "terminated", "on", "truncated", "on"]
    manifest = store_of(kinds, rewards=np.array([1, 2, 3, 4, 100], np.float32)).manifest
    facts = json.loads(json.dumps(manifest.to_dict()))
    assert (facts["transitions"], facts["td_transitions"], facts["episodes"]) == (5, 3, 3)
    assert (facts["return_min"], facts["return_max"], facts["return_mean"], facts["return_std"]) == (3, 7, 5, 2)
    assert facts["complete_episodes"] == 2 and facts["length_mean"] == 2
    assert set(facts["versions"]) == {"torch", "torchrl", "gymnasium", "h5py"}
    assert store_of(["on"]).manifest.return_mean is None
