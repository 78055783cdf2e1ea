"""Do AWAC and BC reach what their dataset's own policy did? Minutes a source and core: `make test-slow`."""

from __future__ import annotations

import csv
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import o2o_lightning.data
from o2o_lightning.checkpoint.handover import read_handover
from o2o_lightning.cli.main import main
from o2o_lightning.data.module import OfflineData

# AWAC peaks early (docs/results-earlier.md), so it is looked at often
RUNS = {
    "bc": ["--trainer.max_steps", "6000", "--data.eval_every_updates", "1000"],
    "bc10": ["--trainer.max_steps", "3000", "--data.eval_every_updates", "500"],
    "awac": ["--trainer.max_steps", "1500", "--data.eval_every_updates", "250"],
}


def dataset_return() -> float:
    """Mean return of the complete episodes of the embedded set, summed from the file."""
    path = Path(o2o_lightning.data.__file__).parent / "embedded" / "hopper-medium.hdf5"
    with h5py.File(path) as file:
        rewards = file["rewards"][:].astype(np.float64)
        ends = np.flatnonzero(file["terminals"][:].astype(bool) | file["timeouts"][:].astype(bool))[:-1]
    return float(np.diff(np.concatenate([[0.0], rewards.cumsum()[ends]])).mean())


@pytest.mark.slow
@pytest.mark.parametrize("source", RUNS)
def test_the_best_policy_of_a_source_reaches_the_mean_return_of_its_data(source: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    assert main(["fit", "--phase", "offline", f"offline={source}", *RUNS[source], "--run_dir", str(tmp_path)]) == 0
    best = read_handover(tmp_path / "offline/checkpoints/best.ckpt")
    actor, normalizer = best.build_actor(), best.build_normalizer()
    # other start states than those by which it was the best: a maximum of noise would not last
    data = OfflineData("embedded:hopper-medium", eval_episodes=20, eval_seed=5000)
    data.setup("test")
    found = data.evaluate(lambda observation: actor.act(normalizer.numpy(observation))).return_mean
    with (tmp_path / "offline/metrics.csv").open() as file:
        curve = [round(float(row["return_mean"])) for row in csv.DictReader(file) if row.get("return_mean")]
    print(f"{source}: {found:.0f}, evaluations {curve}, the data {dataset_return():.0f}")
    assert found >= dataset_return()
