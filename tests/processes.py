"""Two processes of one run, forked as `torchrun` would start them: a fork need not import torch anew."""

from __future__ import annotations

import os
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import killing
import torch

DDP = ["--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp"]


def pair(argv: list[str], log: Path, prepare: Callable[[int], None] = lambda rank: None) -> list[int]:
    """Exit codes of the command line run by both processes; ``log`` has what both have said."""
    port = free_port()

    def join(rank: int) -> Callable[[], None]:
        return lambda: (become(rank, port), prepare(rank))[0]

    pids = [killing.run([*argv], log, join(rank), wait=False) for rank in (0, 1)]
    return [killing.waited(pid) for pid in pids]


def results(function: Callable[[int], Any], folder: Path, count: int = 2) -> list[Any]:
    """What ``function(rank)`` returns in each of ``count`` processes: tensors and plain values."""
    folder.mkdir()
    port, pids = free_port(), []
    for rank in range(count):
        sys.stdout.flush()
        pids.append(os.fork())
        if pids[-1]:
            continue
        code = 70
        try:
            become(rank, port, count)
            torch.save(function(rank), folder / f"{rank}.pt")
            code = 0
        except BaseException:
            (folder / "error").write_text(traceback.format_exc())
        finally:
            os._exit(code)
    codes = [killing.waited(pid) for pid in pids]
    assert codes == [0] * count, (folder / "error").read_text()
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(count)]


def become(rank: int, port: int, count: int = 2) -> None:
    """Sets what torchrun sets."""
    places = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    os.environ |= {name: str(value) for name, value in places.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"}
    torch.set_num_threads(1)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
