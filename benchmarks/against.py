"""The same update by two checkouts of the package, in turn, so that a ratio hardly notices what else the machine does.

    python benchmarks/against.py ../other-checkout --only SAC --only TD3 --rounds 20
    python benchmarks/against.py ../other-checkout --lightning "TD3 online" --rounds 4

Each checkout runs in a process of its own, with its own ``benchmarks/cases.py``; both make the same number of updates,
by turns. Printed are milliseconds of processor time an update, and the ratio this / other round by round. With
``--lightning``, what Lightning, data and logging take beside an update, in fits of the two by turns.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]


class Worker:
    """One case of one checkout: :meth:`milliseconds` of processor time an update."""

    def __init__(self, checkout: Path, case: str, kind: str = "--worker") -> None:
        command = [sys.executable, __file__, str(checkout), kind, case]
        environment = {**os.environ, "PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def milliseconds(self, updates: int) -> float:
        """Of each of so many updates."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{updates}\n")
        return float(self.process.stdout.readline())

    def end(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def work(checkout: Path, name: str) -> None:
    """Makes as many updates as each line asks for, and answers how long one took."""
    sys.path[0] = str(checkout / "benchmarks")
    import cases
    import torch

    torch.set_num_threads(1)
    with contextlib.suppress(ImportError):  # an older checkout
        from o2o_lightning.phases.products import settle_library

        settle_library()
    case = next(case for case in cases.CASES if case.name == name)
    update = case.ours(False)
    for line in sys.stdin:
        updates = int(line) * case.period
        start = time.process_time()
        for _ in range(updates):
            update()
        print(1000.0 * (time.process_time() - start) / updates, flush=True)


def share(checkout: Path, fit: str) -> None:
    """Answers each line with what Lightning, data and logging take beside a fit's updates, in per cent of these."""
    sys.path[0] = str(checkout / "benchmarks")
    import surroundings
    import torch

    from o2o_lightning.phases.products import settle_library

    torch.set_num_threads(1)
    settle_library()
    for _ in sys.stdin:
        with contextlib.redirect_stdout(sys.stderr):
            found = surroundings.lightning_overhead(fit, 100)
        print(100.0 * found["overhead"], flush=True)


def main() -> None:
    """Compares this checkout with another."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("other", type=Path)
    parser.add_argument("--only", action="append", default=[], metavar="SUBSTRING", help="of names of cases")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--updates", type=int, default=10, help="in a round")
    parser.add_argument("--worker", metavar="CASE", help=argparse.SUPPRESS)
    parser.add_argument("--lightning", choices=("SAC online", "TD3 online"), help="compares what it takes, of this fit")
    parser.add_argument("--share", metavar="FIT", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    other = arguments.other.resolve()
    if arguments.worker is not None:
        work(other, arguments.worker)
        return
    if arguments.share is not None:
        share(other, arguments.share)
        return
    if arguments.lightning is not None:
        workers = [Worker(checkout, arguments.lightning, "--share") for checkout in (HERE, other)]
        for _ in range(arguments.rounds):
            own, others = (worker.milliseconds(1) for worker in workers)
            print(f"{arguments.lightning}: {own:.1f} % of an update here, {others:.1f} % there", flush=True)
        return
    import cases

    wanted = arguments.only or [""]
    names = [case.name for case in cases.CASES if any(part in case.name for part in wanted)]
    print(f"{'step':<22}{'this ms':>9}{'other ms':>10}{'ratio':>8}   quartiles")
    for name in names:
        workers = [Worker(HERE, name), Worker(other, name)]
        for worker in workers:
            worker.milliseconds(arguments.updates)  # warm
        rounds = [[worker.milliseconds(arguments.updates) for worker in workers] for _ in range(arguments.rounds)]
        low, middle, high = statistics.quantiles([ours / theirs for ours, theirs in rounds], n=4)
        ours, theirs = (statistics.median(column) for column in zip(*rounds, strict=True))
        print(f"{name:<22}{ours:>9.3f}{theirs:>10.3f}{middle:>8.3f}   {low:.3f} to {high:.3f}", flush=True)
        for worker in workers:
            worker.end()


if __name__ == "__main__":
    main()
