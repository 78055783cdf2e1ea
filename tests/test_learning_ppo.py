"""Does O2PPO improve an IQL policy on Hopper? About ten minutes a seed and core: `make test-slow`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from learning import fit, last, score

STEPS = ["steps.offline=15000", "steps.reevaluate=10000", "steps.env=20480"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_o2ppo_ends_above_its_offline_policy(seed: int, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    common = [*STEPS, "--seed_everything", seed]
    fit("--phase", "all", "offline=iql", "online=o2ppo", *common, "--run_dir", tmp_path / "o2ppo")
    offline = ["--model.init_from", last(tmp_path / "o2ppo", "offline")]
    fit("--phase", "online", "online=ppo", *common, *offline, "--run_dir", tmp_path / "direct")
    full, direct = score(tmp_path / "o2ppo"), score(tmp_path / "direct")
    curves = [[round(value, 1) for _, _, value in found["curve"]] for found in (full, direct)]
    print(f"offline {full['offline']:.1f}, O2PPO {curves[0]}, direct {curves[1]}")
    assert full["final"] > full["offline"]
