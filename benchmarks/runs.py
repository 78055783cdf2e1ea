"""One phase by the command line, once: what was finished is kept, and what was cut off goes on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def finish(run_dir: Path, phase: str, arguments: Sequence[str], log: Path) -> bool:
    """Runs ``o2o fit --phase PHASE ARGUMENTS --run_dir RUN_DIR``, or what is left of it, in one thread.

    Its output goes to ``log``. True when its summary is there.
    """
    summary = run_dir / phase / "summary.json"
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
    print(f"{run_dir / phase}: {'done' if summary.exists() else f'failed, {log} says why'}", flush=True)
    return summary.exists()
