"""`o2o sweep` by launchers that pack jobs on machines, run for real on this one: a stacked job of two seeds a task."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from o2o_lightning.cli.main import main

JOB = [
    "--phase", "online", "online=td3,sac", "seeds=2", "experiment=scratch", "--data.env_id", "Pendulum-v1",
    "steps.env=30", "--data.warmup_steps", "20", "--data.batch_size", "8", "--data.eval_every", "20",
    "--data.eval_episodes", "1", "--model.hidden", "[8,8]", "--trainer.accelerator", "cpu",
]  # fmt: skip
LAUNCHERS = {
    "submitit_local": ["hydra.launcher.cpus_per_task=1"],
    "ray": ["+hydra.launcher.ray.init.num_cpus=2", "+hydra.launcher.ray.remote.num_cpus=1"],
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_each_task_is_a_job_of_several_seeds_and_the_report_gathers_them(launcher: str, tmp_path: Path) -> None:
    pytest.importorskip(f"hydra_plugins.hydra_{launcher.partition('_')[0]}_launcher")
    runs, options = tmp_path / "runs", [f"hydra/launcher={launcher}", *LAUNCHERS[launcher]]
    assert main(["sweep", *JOB, *options, "--run_dir", str(runs)]) == 0
    for method in ("td3", "sac"):
        job = runs / f"online={method}"
        assert json.loads((job / "summary.json").read_text())["seeds"] == [0, 1]
        assert (job / "seed-1/online/checkpoints/last.ckpt").exists()
    assert main(["report", str(runs), "--out", str(tmp_path / "report")]) == 0
    groups = json.loads((tmp_path / "report/report.json").read_text())["groups"]
    assert sorted((group["algorithm"], *group["seeds"]) for group in groups) == [("sac", 0, 1), ("td3", 0, 1)]
