"""Does O2TD3 do on real physics what the paper says? About ten minutes a seed and core: `make test-slow`."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from learning import beside_direct, early, last, score

STEPS = ["steps.offline=20000", "steps.reevaluate=20000", "steps.align=15000", "steps.env=6000"]


class Run(NamedTuple):
    directory: Path
    full: dict[str, Any]
    direct: dict[str, Any]


@pytest.fixture(scope="module", params=[0, 1], ids=["seed 0", "seed 1"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    torch.set_num_threads(1)
    directory = tmp_path_factory.mktemp("o2td3")
    beside_direct(directory, request.param, STEPS, [], direct="td3", start="offline")
    return Run(directory, score(directory / "full"), score(directory / "direct"))


@pytest.mark.slow
def test_alignment_makes_the_anchor_the_best_action_without_moving_the_policy_far(run: Run) -> None:
    before, after = agreement(run.directory / "full", "reevaluate"), agreement(run.directory / "full", "align")
    print(f"share {before.share:.3f} -> {after.share:.3f}, mean gap {before.gap_mean:.3f} -> {after.gap_mean:.3f}")
    assert before.share < 0.05
    assert after.share > 0.40
    assert after.gap_mean > 5 * before.gap_mean
    assert abs(run.full["aligned"] - run.full["offline"]) < 10


@pytest.mark.slow
def test_constrained_fine_tuning_never_collapses_and_direct_fine_tuning_does(run: Run) -> None:
    offline = run.full["offline"]
    print(f"offline {offline:.1f}, O2TD3 {early(run.full)}, direct {early(run.direct)}")
    assert min(early(run.full)) >= 0.9 * offline
    assert min(early(run.direct)) < 0.5 * offline


@pytest.mark.slow
def test_the_alignment_phase_logs_its_own_agreement(run: Run) -> None:
    with (run.directory / "full/align/metrics.csv").open() as file:
        shares = [float(row["anchor_share"]) for row in csv.DictReader(file) if row.get("anchor_share")]
    assert shares[-1] == pytest.approx(float(agreement(run.directory / "full", "align").share), abs=1e-6)


class Measured(NamedTuple):
    share: float
    gap_mean: float


def agreement(run_dir: Path, phase: str) -> Measured:
    """The anchor against 32 perturbed actions in 2048 dataset states, recomputed from the checkpoint alone."""
    from o2o_lightning.checkpoint.handover import read_handover
    from o2o_lightning.data.build import build_store
    from o2o_lightning.data.spec import load_raw

    source = read_handover(last(run_dir, phase))
    store = build_store(load_raw("embedded:hopper-medium"), None)
    stream = torch.Generator().manual_seed(0)
    with torch.no_grad():
        rows = store.sample_rows(2048, stream)
        observation = source.build_normalizer()(store.gather(rows)["observation"])
        anchor = source.build_actor("offline_actor").mode(observation)
        critic = source.build_critic()
        q_anchor = critic(observation, anchor).min(0).values
        near = [(anchor + 0.5 * torch.randn(anchor.shape, generator=stream)).clamp(-1, 1) for _ in range(32)]
        q = torch.stack([critic(observation, action).min(0).values for action in near])
    best = torch.cat((q_anchor[None], q)).argmax(0)
    return Measured(float((best == 0).float().mean()), float((q_anchor - q.mean(0)).mean()))
