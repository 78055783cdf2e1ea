"""Runs that share what they start from: one phase each, in an order, finished once and gone on with where cut off."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from o2o_lightning.errors import Interrupted


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


class Processes:
    """Those of the jobs that run now. A signal makes them stop in good order, and no other begins."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._living: set[subprocess.Popen[bytes]] = set()
        self._starting = threading.RLock()  # the signal may come while this very thread holds it

    def run(self, command: Sequence[str], log: Path) -> None:
        """Runs ``o2o COMMAND`` in a process of one thread to its end; what it says is added to ``log``."""
        line = [sys.executable, "-m", "o2o_lightning.cli.main", *command]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # bit-equal results on any number of cores
        with log.open("ab") as output:
            with self._starting:
                if self.signal is not None:
                    return
                process = subprocess.Popen(line, stdout=output, stderr=subprocess.STDOUT, env=environment)
                self._living.add(process)
            process.wait()
        self._living.discard(process)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Hands SIGINT and SIGTERM on, and raises :class:`Interrupted` in the end where one has come."""
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if self.signal is not None:
            raise Interrupted("stopped; the same command goes on.", self.signal)

    def _stop(self, number: int, frame: object) -> None:
        with self._starting:
            self.signal = number
            for process in [*self._living]:
                process.send_signal(signal.SIGTERM)  # a terminal's Ctrl-C has reached them already: this is its echo


@dataclass(frozen=True)
class Chain:
    """Jobs of one dataset and seed, each in a folder of ``folder``, and what is typed for each beside its choices.

    ``options`` is in the order in which they run; ``jobs`` may have others. Where there are ``seeds``, each job makes
    all of them in its process, and each starts from its own of the parent's checkpoints.
    """

    folder: Path
    jobs: Mapping[str, Job]
    options: Mapping[str, Sequence[str]]
    seeds: Sequence[int] = ()

    def finished(self, name: str) -> bool:
        """Whether the job of that name is."""
        return (self.folder / name / "summary.json").exists()

    def run(self, processes: Processes) -> list[Path]:
        """Runs what is left; the folders of those that have failed or could not begin."""
        failed: list[str] = []
        for name in self.options:
            if processes.signal is not None:
                break
            job = self.jobs[name]
            if job.parent in failed or not finish(self.folder / name, job.phase, self.arguments(name), processes):
                failed.append(name)
        return [self.folder / name for name in failed]

    def arguments(self, name: str) -> list[str]:
        """What is typed behind the phase of a job."""
        job = self.jobs[name]
        typed = [*job.choices, *self.options[name]]
        typed += [f"seeds=[{','.join(map(str, self.seeds))}]"] if self.seeds else []
        if job.parent is None:
            return typed
        before = self.folder / job.parent / ("seed-$SEED" if self.seeds else "") / self.jobs[job.parent].phase
        return [*typed, f"--model.init_from={before / 'checkpoints' / 'last.ckpt'}"]


def run_chains(chains: Sequence[Chain], workers: int = 1) -> list[Path]:
    """Runs the chains, ``workers`` at once; the folders of the jobs that failed, whose ``.log`` says why.

    Raises:
        Interrupted: a signal came, and what ran has stopped; each can be gone on with.
    """
    processes = Processes()
    with processes.watching(), ThreadPoolExecutor(workers) as pool:
        return [folder for failed in pool.map(lambda chain: chain.run(processes), chains) for folder in failed]


def finish(run_dir: Path, phase: str, arguments: Sequence[str], processes: Processes) -> bool:
    """Runs ``o2o fit --phase PHASE ARGUMENTS --run_dir RUN_DIR``, or what is left of it.

    Its output goes to ``RUN_DIR.log``. True when its summary is there.
    """
    summary, log = run_dir / "summary.json", Path(f"{run_dir}.log")
    if summary.exists():
        return True
    command = ["fit", "--phase", phase, *arguments, "--run_dir", str(run_dir)]
    if any(run_dir.rglob("*.ckpt")):
        command = ["resume", str(run_dir)]
    elif run_dir.exists():
        shutil.rmtree(run_dir)
    log.parent.mkdir(parents=True, exist_ok=True)
    processes.run(command, log)
    failed = f"failed, {log} says why" if processes.signal is None else "stopped"
    print(f"{run_dir}: {'done' if summary.exists() else failed}", flush=True)
    return summary.exists()
