"""The Online Decision Transformer's own loop: what it keeps, asks for and learns (T112–T116)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Fit
from data_files import env_of, raw_of
from every_method import TASK, WINDOWS, Networks, built, windows

from o2o_lightning.cli.main import main
from o2o_lightning.data.build import build_store
from o2o_lightning.data.episodes import EpisodeData
from o2o_lightning.data.trajectories import TrajectoryData
from o2o_lightning.methods.method import Moment
from o2o_lightning.methods.odt import ODT, OnlineODT
from o2o_lightning.nn.decision_transformer import Window
from o2o_lightning.phases.episodes import OnlineEpisodes
from o2o_lightning.phases.offline import Offline
from o2o_lightning.replay.episodes import EpisodeBuffer
from o2o_lightning.replay.windows import Windows


def kept(capacity: int = 3) -> EpisodeBuffer:
    """Of a dataset of five episodes, of 2, 4, 3, 5 and 1 steps."""
    terminated = np.zeros(15, np.bool_)
    terminated[[1, 5, 8, 13, 14]] = True
    return EpisodeBuffer(build_store(raw_of(terminated, terminated & False), env_of()), capacity)


def play(buffer: EpisodeBuffer, rewards: list[float], truncated: bool = False) -> None:
    for i, reward in enumerate(rewards):
        last = i == len(rewards) - 1
        ends = last and not truncated, last and truncated
        buffer.add(np.full(3, 100.0 + i), np.zeros(2), reward, np.full(3, 101.0 + i), *ends)


def test_t112_an_episode_is_remembered_by_the_return_that_came_of_it() -> None:
    buffer = kept()
    play(buffer, [1.0, -2.0, 4.0], truncated=True)
    seen = Windows(buffer.store, 3, 0.5)
    start = int(buffer.store.episodes[-1, 0])
    found = seen.gather(torch.tensor([start]))["return_to_go"]
    assert found.tolist() == [[1.5, 1.0, 2.0]]


def test_t114_the_newest_episode_takes_the_oldest_place_and_the_worst_of_the_dataset_goes_first() -> None:
    buffer = kept(3)
    returns = buffer.store.episode_returns().tolist()
    assert returns == sorted(returns) and len(returns) == 3
    for i in range(4):
        play(buffer, [float(i), 50.0])
        assert len(buffer.episodes) == 3
        assert buffer.store.episode_returns().tolist() == ([*returns, *(50.0 + k for k in range(i + 1))])[-3:]
    assert len(kept(10).episodes) == 5  # there are no more


def test_an_episode_under_way_is_not_drawn_and_one_that_cannot_go_on_is_closed() -> None:
    buffer = kept()
    before = len(buffer.store)
    buffer.add(np.zeros(3), np.zeros(2), 1.0, np.ones(3), False, False)
    assert len(buffer.store) == before and len(buffer.under_way) == 1
    buffer.truncate_last()
    assert not buffer.under_way and bool(buffer.store["next", "truncated"][-1])


def test_what_was_played_is_saved_and_loaded() -> None:
    buffer, other = kept(), kept()
    for rewards in ([1.0], [2.0, 3.0]):
        play(buffer, rewards)
    buffer.add(np.zeros(3), np.zeros(2), 9.0, np.ones(3), False, False)
    other.load_state(buffer.state())
    for each in (buffer, other):
        play(each, [4.0])
    assert torch.equal(buffer.store.matrix, other.store.matrix)
    assert torch.equal(buffer.store.episodes, other.store.episodes)


def test_t116_an_episode_is_drawn_as_often_as_it_is_long() -> None:
    buffer = kept(5)
    rows = Windows(buffer.store, 2, 1.0).sample_rows(200_000, torch.Generator().manual_seed(0))
    lengths = (buffer.store.episodes[:, 1] - buffer.store.episodes[:, 0]).double()
    owner = torch.searchsorted(buffer.store.episodes[:, 1].contiguous(), rows, right=True)
    torch.testing.assert_close(owner.bincount().double() / len(rows), lengths / lengths.sum(), atol=0.005, rtol=0)


@pytest.mark.parametrize("padded", [False, True])
def test_t113_the_entropy_counts_padding_only_where_the_code_does(padded: bool) -> None:
    torch.manual_seed(0)
    method = ODT(**WINDOWS, padded_entropy=padded)
    method.build(TASK)
    batch = windows()
    noise = {"entropy": torch.randn(batch["action"].shape)}
    found = method.step(batch, noise)
    names = "return_to_go", "observation", "action", "timestep"
    policy = method.actor.distribution(Window(*(batch[name] for name in names)))
    entropy, log_prob = -policy.sample(noise["entropy"])[1], policy.log_prob(batch["action"], 1 - 1e-6)
    real = batch["real"]
    mean = entropy.mean() if padded else entropy[real].mean()
    torch.testing.assert_close(found.metrics["sequence_loss"], -log_prob[real].mean() - 0.1 * mean)
    temperature_loss = 0.1 * (mean + 3.0)  # A = 3
    torch.testing.assert_close(found.value, found.metrics["sequence_loss"] + temperature_loss)


def test_t115_the_temperature_falls_where_the_entropy_is_above_its_target() -> None:
    method, batch = built("odt online"), windows()
    slopes = []
    torch.nn.init.zeros_(method.actor.head_log_std.weight)
    for bias in (-9.0, 0.3):  # log σ of −5, and of −0.5, where tanh makes the action almost uniform
        torch.nn.init.constant_(method.actor.head_log_std.bias, bias)
        method.zero_grad()
        method.step(batch, {"entropy": torch.randn(batch["action"].shape)}).value.backward()
        slopes.append(float(method.log_temperature.grad))
    assert slopes[0] < 0 < slopes[1]  # descent raises it, lowers it


def test_it_goes_on_with_all_that_it_had_and_asks_for_more() -> None:
    source = ODT(**WINDOWS, target_return=30.0)
    source.build(TASK)
    source.log_temperature.data.fill_(-4.0)
    method = OnlineODT(updates_before=5000, lr=1.0)
    method.build(TASK, Networks("offline", source))
    assert float(method.log_temperature.detach()) == -4.0 and method.context == source.context
    assert method.rates(Moment(0))["actor"] == pytest.approx(5001 / 10_000)
    assert method.wanted == 60.0 and OnlineODT.carries_moments == ("offline", "reevaluate", "align")
    assert all(torch.equal(a, b) for a, b in zip(method.actor.parameters(), source.actor.parameters(), strict=True))
    method.wanted_return = -7.0
    assert method.wanted == -7.0


def test_acting_sees_the_episode_so_far_and_what_is_still_wanted(pendulum: str, fit: Fit) -> None:
    sizes: dict[str, Any] = {**WINDOWS, "acting_context": 3}
    data = {"dataset": pendulum, "eval_episodes": 1, "env_kwargs": {"max_episode_steps": 6}}
    before = fit(lambda: Offline(ODT(**sizes)), lambda: TrajectoryData(batch_size=4, **data), 3)
    seen: list[Window] = []

    class Looking(OnlineODT):
        def sampled(self, window: Window, noise: Any) -> Any:
            seen.append(window)
            return super().sampled(window, noise)

    phase = lambda: OnlineEpisodes(Looking(wanted_return=-100.0), str(before.checkpoint))  # noqa: E731
    played = EpisodeData(batch_size=4, env_steps=14, updates=5, **data)
    run = fit(phase, played)
    assert run.module.updates == 10 and len(seen) == 14  # two episodes of six steps, and two steps
    kept_rows = played.kept.played[1]
    assert [window.action.shape[1] for window in seen[6:12]] == [1, 2, 3, 3, 3, 3]
    columns = played.kept.layout.columns(kept_rows)
    last = seen[11]
    assert torch.equal(last.timestep[0], torch.tensor([3, 4, 5]))
    assert torch.equal(last.action[0, :2], columns["action"][3:5])
    scale, rewards = run.module.method.actor.spec.return_scale, columns["reward"]
    wanted = [scale * (-100.0 - float(rewards[:t].sum())) for t in (3, 4, 5)]
    torch.testing.assert_close(last.return_to_go[0], torch.tensor(wanted), rtol=1e-4, atol=1e-5)
    raw = columns["observation"][3:6].numpy()
    np.testing.assert_allclose(last.observation[0], run.module.normalizer.numpy(raw), rtol=1e-5, atol=1e-6)
    assert math.isfinite(run.module.curve[-1][1])


def test_another_policy_cannot_be_given_to_it(pendulum: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--phase", "all", "offline=td3_bc", "online=odt", "--data.dataset", pendulum]) == 2
    assert "online=odt: it goes on from an Online Decision Transformer" in capsys.readouterr().err
