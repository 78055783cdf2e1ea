"""How long targets of several steps could be, of rows whose next actions are or are not the policy's."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run

from o2o_lightning.data.build import build_store
from o2o_lightning.data.spec import load_raw
from o2o_lightning.envs.make import env_spec
from o2o_lightning.policies.load import load_policy

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
agreement = pytest.importorskip("agreement", reason="benchmarks are not in an sdist")


def test_a_target_ends_before_a_foreign_action_and_with_its_episode() -> None:
    own = np.array([0, 1, 1, 0, 1, 1, 1, 1, 1, 1], bool)
    ends = np.array([0, 0, 0, 0, 1, 0, 0, 0, 0, 0], bool)
    assert agreement.lengths(own, ends).tolist() == [3, 2, 1, 2, 1, 5, 4, 3, 2, 1]


def test_a_policy_that_made_its_data_is_near_all_of_it(
    pendulum: str, chain: dict[str, Run], capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(chain["offline"].checkpoint)
    loaded = load_policy(path)
    store = build_store(load_raw(pendulum), env_spec("Pendulum-v1"))
    assert agreement.distances(loaded, store).max() > 0.2
    own = torch.from_numpy(loaded.player.act(store["observation"].numpy()))
    store.put(slice(None), {"action": own + torch.linspace(0.0, 0.1, len(own)).unsqueeze(1)})
    assert agreement.distances(loaded, store) == pytest.approx(np.linspace(0.0, 0.1, len(own)), abs=1e-5)
    assert agreement.main([path]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("| pendulum | td3_bc | ")
