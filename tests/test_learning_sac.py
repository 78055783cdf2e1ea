"""Does O2SAC keep a policy that TD3+BC made and cloning handed over? Some 15 minutes a seed and core."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from learning import early, fit, last, score

STEPS = ["steps.offline=10000", "steps.clone=10000", "steps.reevaluate=10000", "steps.align=10000", "steps.env=6000"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_o2sac_stays_within_a_tenth_of_its_offline_policy(seed: int, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    common = [*STEPS, "--seed_everything", seed]
    fit("--phase", "all", "offline=td3_bc", "online=o2sac", *common, "--run_dir", tmp_path / "o2sac")
    offline = ["--model.init_from", last(tmp_path / "o2sac", "clone")]
    fit("--phase", "online", "online=sac", *common, *offline, "--run_dir", tmp_path / "direct")
    full, direct = score(tmp_path / "o2sac"), score(tmp_path / "direct")
    print(f"offline {full['offline']:.1f}, aligned {full['aligned']:.1f}, O2SAC {early(full)}, direct {early(direct)}")
    assert min(early(full)) >= 0.9 * full["offline"]
