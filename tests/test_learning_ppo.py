"""Does O2PPO improve an IQL policy on Hopper? About ten minutes a seed and core: `make test-slow`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from learning import beside_direct, score

STEPS = ["steps.offline=15000", "steps.reevaluate=10000", "steps.env=20480"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_o2ppo_ends_above_its_offline_policy(seed: int, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    beside_direct(tmp_path, seed, STEPS, ["offline=iql", "online=o2ppo"], direct="ppo", start="offline")
    full, direct = score(tmp_path / "full"), score(tmp_path / "direct")
    curves = [[round(value, 1) for _, _, value in found["curve"]] for found in (full, direct)]
    print(f"offline {full['offline']:.1f}, O2PPO {curves[0]}, direct {curves[1]}")
    assert full["final"] > full["offline"]
