from __future__ import annotations

import pytest
import torch

from o2o_lightning.data.build import build_store
from o2o_lightning.data.module import OfflineData
from o2o_lightning.data.spec import load_raw
from o2o_lightning.data.stream import prepare
from o2o_lightning.nn.normalizer import Normalizer
from o2o_lightning.replay.rewards import RewardMap, return_range_scale


def test_the_return_range_is_that_of_a_plain_loop_over_usable_transitions() -> None:
    raw = load_raw("embedded:hopper-medium")
    returns, running, length = [], 0.0, 0
    for i in range(len(raw.rewards) - 1):
        if raw.truncated[i]:
            continue
        running, length = running + float(raw.rewards[i]), length + 1
        if raw.terminated[i] or length == 1000:
            returns.append(running)
            running, length = 0.0, 0
    assert return_range_scale(build_store(raw, None)) == pytest.approx(1000 / (max(returns) - min(returns)))


def test_the_return_range_reaches_the_learning_rewards_but_not_the_store() -> None:
    data = OfflineData("embedded:hopper-medium", reward_range=True)
    data.setup("fit")
    assert data.store is not None
    data.normalizer = Normalizer.identity(11)
    raw = data.store.gather(torch.arange(4))
    batch = data.prepare(data.store.gather(torch.arange(4)), torch.device("cpu"))
    assert torch.allclose(batch["reward"], raw["reward"] * return_range_scale(data.store))
    assert data.rewards.scale != 1


@pytest.mark.parametrize(("scale", "shift", "expected"), [(10.0, -5.0, 5.0), (1.0, -1.0, 0.0), (1.0, 0.0, 1.0)])
def test_antmaze_maps_turn_a_success_into_the_tables_value(scale: float, shift: float, expected: float) -> None:
    store = build_store(load_raw("embedded:hopper-medium"), None)
    batch = store.gather(torch.arange(3))
    batch["reward"] = torch.tensor([0.0, 1.0, 0.0])
    mapped = prepare(batch, Normalizer.identity(11), RewardMap(scale, shift), torch.device("cpu"))
    assert mapped["reward"].tolist() == [shift, expected, shift]
