"""The page docs/add-a-method.md does what it says: its rule trains, resumes, and equals the built-in one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).parents[1] / "docs/add-a-method.md"
SMALL = ["--model.hidden", "[8,8]", "--model.critic_hidden", "[8,8]", "--model.samples", "2"]
COUNTS = ["steps.offline=6", "steps.env=80", "--data.warmup_steps=0", "--data.batch_size=32", "--data.eval_episodes=1"]


def run(folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "o2o_lightning.cli.main", *argv]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, env={**os.environ})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the page's ``my_rule.py``, and a run of its command at small sizes."""
    folder = tmp_path_factory.mktemp("mine")
    rule, *_ = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (folder / "my_rule.py").write_text(rule)
    command, *_ = re.findall(r"```bash\no2o (.*?)```", PAGE.read_text(), re.DOTALL)
    done = run(folder, *command.replace("\\\n", " ").split(), *COUNTS, *SMALL)
    assert done.returncode == 0, done.stderr
    return folder


def weights(folder: Path, phase: str) -> dict[str, torch.Tensor]:
    checkpoint = torch.load(folder / phase / "checkpoints/last.ckpt", weights_only=True)
    return dict(checkpoint["state_dict"])


def test_the_pages_rule_is_about_twenty_lines() -> None:
    rule, *_ = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    code = re.sub(r'""".*?"""', "", rule[rule.index("class") :], flags=re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 20


def test_the_pages_rule_equals_the_built_in_one(folder: Path) -> None:
    options = ["--data.dataset", "embedded:hopper-medium", "--model.conservative_weight", "5", *COUNTS, *SMALL]
    plain = ["--model.actor_lr", "3e-5"]
    done = run(folder, "fit", "--phase", "all", "online=cal_ql", "--run_dir", "built_in", *options, *plain)
    assert done.returncode == 0, done.stderr
    for phase in ("offline", "online"):
        mine, ours = weights(folder / "runs/mine", phase), weights(folder / "built_in", phase)
        assert mine.keys() == ours.keys()
        assert all(torch.equal(mine[key], ours[key]) for key in mine)


def test_a_users_rule_has_options_that_are_typed(folder: Path) -> None:
    for option, said in (("--model.calibrate", "true or false"), ("--model.calibrat", "did you mean 'calibrate'")):
        done = run(folder, "fit", "--phase", "offline", "offline=my_rule:MyCalQL", "--run_dir", "x", option, "7.5")
        assert done.returncode == 2 and said in done.stderr and not (folder / "x").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [("my_rul:MyCalQL", "No module named 'my_rul'"), ("my_rule:MyCal", "MyCal"), ("my_rule:Tensor", "it is no Method")],
)
def test_what_is_no_rule_is_refused_in_a_line(folder: Path, name: str, said: str) -> None:
    done = run(folder, "fit", "--phase", "offline", f"offline={name}", "--run_dir", "x")
    assert done.returncode == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (folder / "x").exists()


def test_a_users_rule_is_resumed_tested_and_exported(folder: Path) -> None:
    online = "runs/mine/online/checkpoints/last.ckpt"
    assert run(folder, "resume", "runs/mine").returncode == 0
    assert "score" in run(folder, "test", "--ckpt_path", online, "--data.eval_episodes", "1").stdout
    done = run(folder, "policy", "export", online, "--format", "torch", "--out", "policy.pt2")
    assert done.returncode == 0, done.stderr
