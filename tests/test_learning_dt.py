"""Does the Decision Transformer do better than the data it learned from? Minutes on a core: `make test-slow`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from o2o_lightning.cli.main import main

# Sizes for a CPU: CORL's take 4096 windows an update. The data's policy had no memory, so one step says all.
SIZES = [
    "--data.batch_size", "128", "--model.context", "5", "--model.acting_context", "1", "--model.width", "64",
    "--model.layers", "2", "--model.lr", "1e-3", "--model.warmup_updates", "500", "--data.eval_every_updates", "1000",
]  # fmt: skip


@pytest.mark.slow
def test_the_decision_transformer_reaches_the_datasets_mean_return(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    command = ["fit", "--phase", "offline", "offline=dt", "steps.offline=5000", *SIZES, "--run_dir", str(tmp_path)]
    assert main(command) == 0
    curve = json.loads((tmp_path / "summary.json").read_text())["score"]["curve"]
    mean = json.loads((tmp_path / "manifest.json").read_text())["return_mean"]
    print(f"dataset {mean:.0f}, curve {[(step, round(value)) for step, value, _ in curve]}")
    assert curve[-1][1] >= mean
