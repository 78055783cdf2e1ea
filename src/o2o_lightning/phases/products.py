"""Which of torch's two libraries forms a network's large products: the quicker one, measured once a machine."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from filelock import FileLock

from o2o_lightning.data.download import cache_dir
from o2o_lightning.errors import UserError
from o2o_lightning.machine import processor
from o2o_lightning.nn import onednn
from o2o_lightning.nn.onednn import Onednn, product

FIXED = {"mkl": Onednn(False, False, False), "onednn": Onednn(True, True, True)}
BATCH, WIDTH = 512, 256  # two batches of the paper's, or half of a block of CQL's
ROUNDS = 24
PATIENCE = 10.0  # seconds for another process to have measured
WORTH = 1.03  # how much quicker oneDNN must be, so that noise does not choose


def settle_library() -> None:
    """Has each kind of large product formed by the quicker library, in this process and in all later ones.

    ``O2O_PRODUCTS`` says ``mkl`` or ``onednn`` for all of them instead.

    Raises:
        UserError: it says something else.
    """
    onednn.ONEDNN = _chosen()


@cache
def _chosen() -> Onednn:
    wanted = os.environ.get("O2O_PRODUCTS")
    if wanted is not None and wanted not in FIXED:
        raise UserError(f"O2O_PRODUCTS {wanted}: one of {', '.join(FIXED)} is needed. Or unset it.")
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return FIXED["mkl"]
    if wanted is not None:
        return FIXED[wanted]
    try:
        return remembered(cache_dir() / "products.json", measured)
    except UserError:  # without a home
        return measured()


def remembered(file: Path, measure: Callable[[], Onednn]) -> Onednn:
    """What ``measure`` said on this machine when it was first asked, as far as ``file`` can be read and written.

    So a run, and what goes on with it when it has died, have the same bits.
    """
    machine = ", ".join([processor(), f"{torch.get_num_threads()} threads", f"torch {torch.__version__}", *_limits()])
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock"), timeout=PATIENCE):
            known = _read(file)
            if machine not in known:
                known[machine] = measure()
                whole = file.with_suffix(".part")
                whole.write_text(json.dumps({name: choice._asdict() for name, choice in known.items()}, indent=1))
                whole.replace(file)
            return known[machine]
    except OSError:  # a folder that is not ours, or a lock that somebody keeps
        return measure()


def _limits() -> list[str]:
    """What the user has told the libraries of instructions."""
    return [f"{name} {os.environ[name]}" for name in ("MKL_CBWR", "ONEDNN_MAX_CPU_ISA") if name in os.environ]


def _read(file: Path) -> dict[str, Onednn]:
    """None of them where it is not such a file."""
    try:
        known = {name: Onednn(**choice) for name, choice in json.loads(file.read_text()).items()}
    except (FileNotFoundError, ValueError, TypeError, AttributeError):
        return {}
    return {name: choice for name, choice in known.items() if all(isinstance(flag, bool) for flag in choice)}


def measured() -> Onednn:
    """Of each kind of product, whether oneDNN forms it in less time than torch's own way."""
    x, weight, bias = torch.ones(BATCH, WIDTH), torch.ones(WIDTH, WIDTH), torch.ones(WIDTH)
    kinds: list[tuple[Callable[[], object], Callable[[], object]]] = [
        (lambda: F.linear(x, weight, bias), lambda: product(x, weight, bias)),
        (lambda: x @ weight, lambda: product(x, weight.t())),
        (lambda: x.t() @ x, lambda: product(x.t(), x.t())),
    ]
    with torch.no_grad():
        return Onednn(*(_quicker(*kind) for kind in kinds))


def _quicker(own: Callable[[], object], onednn: Callable[[], object]) -> bool:
    taken = {own: float("inf"), onednn: float("inf")}
    for _ in range(ROUNDS):  # turn by turn: a machine's speed changes
        for form in taken:
            start = time.perf_counter()
            form()
            taken[form] = min(taken[form], time.perf_counter() - start)
    return taken[own] > WORTH * taken[onednn]
