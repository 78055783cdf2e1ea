"""Kills runs at random moments of random phases, resumes them, and compares every bit with an uninterrupted run.

    OMP_NUM_THREADS=1 python benchmarks/resume_stress.py --repeat 100 --seed 0

Half of the kills come at a random gradient update, environment step, evaluation, file write or rename; half at a
random time. A third of the runs are killed again while they resume. Prints one line a run, and exits 1 on a mismatch.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import killing

from o2o_lightning.checkpoint.run import read_plan

SIZES = [
    "steps.offline=60", "steps.reevaluate=50", "steps.align=50", "steps.env=130", "checkpoint_every=20",
    "--data.eval_every_updates", "25", "--data.eval_every", "50", "--data.eval_episodes", "2",
    "--trainer.log_every_n_steps", "10", "--data.chunk", "8",
]  # fmt: skip
REPLAY = ["--data.batch_size", "16", "--data.warmup_steps", "30"]
ROLLOUT = ["--data.rollout", "32", "--data.epochs", "2", "--data.batch_size", "16"]
PIPELINES = {
    "O2TD3": ["offline=td3_bc", "online=o2td3", *REPLAY],
    "O2SAC": ["offline=cql", "online=o2sac", *REPLAY],
    "O2PPO": ["offline=iql", "online=o2ppo", *ROLLOUT],
}
MOST = {"update": 120, "env_step": 130, "write": 600, "replace": 14, "evaluate": 5}


def main() -> int:
    """Runs the repetitions; the exit code is 1 on a mismatch."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pipelines", nargs="+", default=list(PIPELINES), choices=list(PIPELINES))
    arguments = parser.parse_args()
    killing.import_everything()
    random_ = random.Random(arguments.seed)
    mismatches = kills = 0
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        phases = {name: _reference(scratch, name) for name in arguments.pipelines}
        for i in range(arguments.repeat):
            name = random_.choice(arguments.pipelines)
            at = random_.randrange(len(phases[name]))
            found, killed = scratch / f"run-{i}", []
            _begin(scratch / name, found, phases[name][: at + 1])
            log = scratch / f"run-{i}.log"
            while not killed or (len(killed) < 4 and killed[-1] and random_.random() < 1 / 3):
                killed.append(_interrupt(random_, found, log))
            kills += sum(death != "" for death in killed)
            code = killing.run(["resume", str(found)], log)
            wrong = [f"exit code {code}"] if code else killing.differences(scratch / name, found, [phases[name][at]])
            mismatches += bool(wrong)
            deaths = ", ".join(death or "nothing" for death in killed)
            print(f"{i + 1:>4} {name} {phases[name][at]:<10} killed at {deaths}: {wrong or 'equal'}", flush=True)
            if wrong:
                print(log.read_text())
            shutil.rmtree(found)
    print(f"{arguments.repeat} runs, {kills} kills, {mismatches} mismatches")
    return 1 if mismatches else 0


def _reference(scratch: Path, name: str) -> list[str]:
    log = scratch / f"{name}.log"
    code = killing.run(["fit", "--phase", "all", *SIZES, *PIPELINES[name], "--run_dir", str(scratch / name)], log)
    if code:
        raise SystemExit(f"{name}: the uninterrupted run failed\n{log.read_text()}")
    phases: list[str] = read_plan(scratch / name)[0]["phases"]
    return phases


def _begin(reference: Path, found: Path, phases: list[str]) -> None:
    """A run of which only the last of ``phases`` is left to do."""
    shutil.copytree(reference, found, ignore=shutil.ignore_patterns("best.ckpt", "*.state"))
    shutil.rmtree(found / phases[-1])
    (found / "summary.json").unlink()


def _interrupt(random_: random.Random, found: Path, log: Path) -> str:
    """Kills a resumed run somewhere; where, or nothing if it was faster."""
    if random_.random() < 0.5:
        event = random_.choice(list(MOST))
        count = random_.randint(1, MOST[event])
        code = killing.run(["resume", str(found)], log, killing.die_at(event, count))
        return f"{event} {count}" if code == -signal.SIGKILL else ""
    seconds = random_.uniform(0.1, 4.0)
    pid = killing.run(["resume", str(found)], log, wait=False)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    return f"{seconds:.2f} s" if killing.waited(pid) == -signal.SIGKILL else ""


if __name__ == "__main__":
    sys.exit(main())
