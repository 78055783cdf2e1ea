"""The commands of README and docs, run in the order of their page at small counts: each ends well."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from policy_files import box, perceptron, prefixed, sb3_zip
from test_docs_commands import commands
from torch import nn

from o2o_lightning.cli.main import main

OBSERVATIONS, ACTIONS = 11, 3  # Hopper's
EVERY_FIT = ["--trainer.accelerator=cpu", "--data.batch_size=8", "--data.eval_episodes=2"]
SHORT = "--data.env_kwargs={max_episode_steps: 8}"
ONLINE = ["--data.env_steps=30", "--data.warmup_steps=10"]
COUNTS = {
    "all": [f"++steps.{phase}=16" for phase in ("offline", "clone", "reevaluate", "align", "env")] + ONLINE[1:],
    "online": ONLINE,
}
PAGES = {  # and the runs that stand there before
    "README.md": [],
    "convergence.md": [],
    "diagnose.md": ["runs/w"],
    "lightning.md": [],
    "methods.md": [],
    "report.md": ["runs/w", "runs/s/a", "runs/o2td3", "runs/direct"],
    "resume.md": ["RUN_DIR"],
    "returns.md": [],
    "seeds.md": [],
    "sequence-models.md": [],
}
ELSEWHERE = {
    "data-make.md": "placeholders; README's commands and tests/test_data_make.py",
    "devices.md": "several processes: tests/test_devices.py, tests/test_sweep.py",
    "reproduce.md": "tests/test_reproduce_runs.py",
    "results.md": "studies of hours; of one the jobs: tests/test_benchmark_rivals.py",
}
LONG = {"sweep": "tests/test_sweep.py", "runs/fair": "its runs", "medium": "tests/test_data_make.py, SAC to a level"}


def test_every_page_with_commands_is_run_or_told_where() -> None:
    assert {page for page, _ in commands()} == PAGES.keys() | ELSEWHERE.keys()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the pages speak of, and a run of them all."""
    folder = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        for name, env in {"walker2d": "Walker2d-v5", "hopper": "Hopper-v5"}.items():
            make = ["data", "make", "--env", env, "--level", "random", "--transitions", "300"]
            assert main([*make, "--output", f"{name}.hdf5"]) == 0
        assert main(small(["fit", "--phase", "all", "--data.dataset", "walker2d.hdf5", "--run_dir", "run"])) == 0
        squashed = ["fit", "--phase", "offline", "offline=cql", "--data.dataset", "walker2d.hdf5", "--run_dir", "cql"]
        assert main(small(squashed)) == 0
    trunk, mean, log_std = perceptron([OBSERVATIONS, 8, 8], nn.ReLU), nn.Linear(8, ACTIONS), nn.Linear(8, ACTIONS)
    nets = {"latent_pi": trunk[:4], "mu": mean, "log_std": log_std}
    state = {k: v for name, net in nets.items() for k, v in prefixed(f"actor.{name}", net.state_dict()).items()}
    sb3_zip(folder / "agent.zip", state, action_space=box(ACTIONS, 1.0))
    return folder


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run(page: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in ("walker2d.hdf5", "hopper.hdf5", "agent.zip"):
        shutil.copy(place / file, tmp_path)
    shutil.copy(place / "walker2d.hdf5", tmp_path / "walker.hdf5")
    shutil.copy(place / "cql" / "offline" / "checkpoints" / "last.ckpt", tmp_path / "policy.ckpt")
    for run in PAGES[page]:
        shutil.copytree(place / "run", tmp_path / run)
    monkeypatch.chdir(tmp_path)
    done = 0
    for name, words in commands():
        if name == page and not LONG.keys() & {*words}:
            assert main(small(words)) == 0, " ".join(words)
            done += 1
    assert done


def small(words: list[str]) -> list[str]:
    """The command with counts that end in seconds, on this machine alone."""
    words = [word.replace("hf:me", "hub").replace("/mnt/", "") for word in words]
    if words[0] == "fit":
        phase = words[words.index("--phase") + 1]
        every = EVERY_FIT[: -1 if "--data.eval_episodes" in words else None]
        return [*words, *every, SHORT, *COUNTS.get(phase, ["--trainer.max_steps=8"])]
    if words[0] in ("test", "diagnose"):
        return [*words, "--data.eval_episodes=2"]
    return [word if word != "100000" else "300" for word in words]
