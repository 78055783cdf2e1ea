"""Runs that share what they start from: one phase each, in an order, finished once and gone on with where cut off."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Job:
    """One phase: what is typed after ``o2o fit --phase PHASE``, and the job whose checkpoint it starts from."""

    phase: str
    choices: tuple[str, ...]
    parent: str | None = None


def ordered(jobs: Mapping[str, Job], wanted: Sequence[str]) -> Iterator[str]:
    """The names of the jobs that the ``wanted`` ones need, each behind the one that it starts from."""
    needed: set[str | None] = set()
    for last in wanted:
        name: str | None = last
        while name is not None:
            needed.add(name)
            name = jobs[name].parent
    return (name for name in jobs if name in needed)


@dataclass(frozen=True)
class Chain:
    """Jobs of one dataset and seed, each in a folder of ``folder``, and what is typed for each beside its choices.

    ``options`` is in the order in which they run; ``jobs`` may have others.
    """

    folder: Path
    jobs: Mapping[str, Job]
    options: Mapping[str, Sequence[str]]

    def finished(self, name: str) -> bool:
        """Whether the job of that name is."""
        return (self.folder / name / self.jobs[name].phase / "summary.json").exists()

    def run(self) -> list[Path]:
        """Runs what is left; the folders of those that have failed or could not begin."""
        failed: list[str] = []
        for name in self.options:
            job = self.jobs[name]
            if job.parent in failed or not finish(self.folder / name, job.phase, self.arguments(name)):
                failed.append(name)
        return [self.folder / name for name in failed]

    def arguments(self, name: str) -> list[str]:
        """What is typed behind the phase of a job."""
        job = self.jobs[name]
        typed = [*job.choices, *self.options[name]]
        if job.parent is None:
            return typed
        start = self.folder / job.parent / self.jobs[job.parent].phase / "checkpoints" / "last.ckpt"
        return [*typed, f"--model.init_from={start}"]


def run_chains(chains: Sequence[Chain], workers: int = 1) -> list[Path]:
    """Runs the chains, ``workers`` at once; the folders of the jobs that failed, whose ``.log`` says why."""
    with ThreadPoolExecutor(workers) as pool:
        return [folder for failed in pool.map(Chain.run, chains) for folder in failed]


def finish(run_dir: Path, phase: str, arguments: Sequence[str]) -> bool:
    """Runs ``o2o fit --phase PHASE ARGUMENTS --run_dir RUN_DIR``, or what is left of it, in a process of one thread.

    Its output goes to ``RUN_DIR.log``. True when its summary is there.
    """
    summary, log = run_dir / phase / "summary.json", Path(f"{run_dir}.log")
    if summary.exists():
        return True
    command = ["fit", "--phase", phase, *arguments, "--run_dir", str(run_dir)]
    if any((run_dir / phase).rglob("*.ckpt")):
        command = ["resume", str(run_dir)]
    elif (run_dir / phase).exists():
        shutil.rmtree(run_dir / phase)
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # bit-equal results on any number of cores
    with log.open("ab") as output:
        subprocess.run(
            [sys.executable, "-m", "o2o_lightning.cli.main", *command],
            stdout=output, stderr=subprocess.STDOUT, env=environment, check=False,
        )  # fmt: skip
    print(f"{run_dir}: {'done' if summary.exists() else f'failed, {log} says why'}", flush=True)
    return summary.exists()
