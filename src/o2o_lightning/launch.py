"""Which process of a run this one is, before a Trainer knows, what it says, where it finds modules of the user's."""

import functools
import os
import sys

from o2o_lightning.errors import visible

SPEAKS = True  # unless another process does for this one


def first_process() -> bool:
    """Whether this process writes and speaks for all."""
    rank = next((os.environ[name] for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID") if name in os.environ), "0")
    # Lightning's own launcher numbers the processes of a machine only
    other_machine = "RANK" not in os.environ and os.environ.get("NODE_RANK", "0") != "0"
    return int(rank) == 0 and not other_machine


def launched_with_others() -> bool:
    """Whether torchrun or SLURM has started this process as one of several."""
    return any(int(os.environ.get(name, "1")) > 1 for name in ("WORLD_SIZE", "SLURM_NTASKS"))


@functools.cache
def note_once(line: str) -> None:
    """``o2o: <line>`` on stderr, once a process, from a run's first one only, where no command line is at hand."""
    if SPEAKS and first_process():
        print(f"o2o: {visible(line)}", file=sys.stderr)


def search_here() -> None:
    """Has modules that the user names found in the working directory too, as ``python -m`` finds them."""
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
