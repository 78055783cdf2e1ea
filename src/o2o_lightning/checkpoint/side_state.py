"""What a checkpoint is continued with, and what nobody else needs: replay buffer, environment, random generators.

``last.ckpt`` names a token; ``last.TOKEN.state/rank-0.pt`` (one file a process) was written before it and is removed
after the next one. So the checkpoint is the commit: whatever moment a kill chooses, it finds its own side state.
"""

import random
import re
import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from o2o_lightning.checkpoint import inert
from o2o_lightning.checkpoint.io import save_atomically
from o2o_lightning.errors import UserError, refusing


def write(checkpoint: str | Path, token: str, rank: int, state: dict[str, Any]) -> None:
    """Writes the side state of process ``rank``; ``checkpoint`` is not there yet, or is still the previous one."""
    save_atomically(_folder(checkpoint, token) / f"rank-{rank}.pt", {"token": token, **state})


def read(checkpoint: str | Path, token: str, rank: int) -> dict[str, Any]:
    """The side state that belongs to ``checkpoint``."""
    path = _folder(checkpoint, token) / f"rank-{rank}.pt"
    advice = "Without it the run cannot go on; start a new one from this policy with --model.init_from."
    if not path.is_file():
        raise UserError(f"checkpoint {checkpoint}: its side state {path} is missing. {advice}")
    with refusing(f"checkpoint {checkpoint}: its side state {path} cannot be read", advice):
        state = inert.load(path)
    if not isinstance(state, dict) or state.get("token") != token:
        raise UserError(f"checkpoint {checkpoint}: {path} belongs to another checkpoint. {advice}")
    return state


def remove_others(checkpoint: str | Path, token: str) -> None:
    """Removes side states that no checkpoint names any more."""
    checkpoint = Path(checkpoint)
    for folder in checkpoint.parent.glob(f"{checkpoint.stem}.*.state"):
        if folder != _folder(checkpoint, token):
            shutil.rmtree(folder, ignore_errors=True)


def random_state() -> dict[str, Any]:
    """The global generators of torch, numpy and Python."""
    keys, position, has_gauss, gauss = cast(tuple[Any, ...], np.random.get_state())[1:]
    version, words, following = random.getstate()
    state = {
        "torch": torch.get_rng_state(),
        "numpy": [torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(gauss)],
        "python": [version, list(words), following],
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """The inverse of :func:`random_state`."""
    torch.set_rng_state(state["torch"])
    keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    version, words, following = state["python"]
    random.setstate((version, tuple(words), following))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _folder(checkpoint: str | Path, token: str) -> Path:
    checkpoint = Path(checkpoint)
    if not re.fullmatch(r"[0-9a-f]+", token):  # it comes from a file, and becomes a path
        raise UserError(f"checkpoint {checkpoint}: it names the side state '{token}', which o2o did not write.")
    return checkpoint.parent / f"{checkpoint.stem}.{token}.state"
