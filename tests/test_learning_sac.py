"""Does O2SAC keep a policy that TD3+BC made and cloning handed over? Three to fourteen minutes a seed.

Networks are small, so that re-evaluation and alignment can make 40,000 updates each in that time.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from learning import beside_direct, early, score

STEPS = ["steps.offline=10000", "steps.clone=10000", "steps.reevaluate=40000", "steps.align=40000", "steps.env=6000"]
SIZES = [
    "+offline.init_args.hidden=[64,64]",
    "+clone.init_args.hidden=[64,64]",
    "reevaluate.init_args.hidden=[64,64]",
]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_o2sac_stays_within_a_tenth_of_its_offline_policy(seed: int, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    beside_direct(tmp_path, seed, [*STEPS, *SIZES], ["offline=td3_bc", "online=o2sac"], direct="sac", start="clone")
    full, direct = score(tmp_path / "full"), score(tmp_path / "direct")
    print(f"offline {full['offline']:.1f}, aligned {full['aligned']:.1f}, O2SAC {early(full)}, direct {early(direct)}")
    assert min(early(full)) >= 0.9 * full["offline"]
