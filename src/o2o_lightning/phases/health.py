"""Numbers that are none: found once a chunk, before anything of the chunk reaches a checkpoint."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from o2o_lightning.errors import Failure


class NonFinite(Failure):
    """A loss became infinite or NaN; ``dump`` is what an engineer needs to see why."""

    def __init__(self, message: str, dump: dict[str, Any]) -> None:
        super().__init__(message)
        self.dump = dump


class ChunkRecord:
    """The losses of one chunk, looked at together: one look at each would make a GPU wait for every update."""

    def __init__(self) -> None:
        self._losses: list[Tensor] = []
        self._rows: list[tuple[int, TensorDictBase, dict[str, Tensor]]] = []

    def add(self, update: int, batch: TensorDictBase, loss: Tensor, metrics: dict[str, Tensor]) -> None:
        """Remembers one loss of gradient update ``update``, and what it was made of."""
        self._losses.append(loss.detach())
        # as they are: detaching each costs more than the rest, and their graphs are empty after the backward pass
        self._rows.append((update, batch, metrics))

    def check(self, phase: str) -> None:
        """Raises :class:`NonFinite` that names the first offending update and tensor."""
        if not self._losses:
            return
        finite = torch.isfinite(torch.stack(self._losses))
        if bool(finite.all()):
            return
        first = int((~finite).nonzero()[0])
        update, batch, metrics = self._rows[first]
        leaves = {_name(key): value for key, value in batch.items(True, True)}
        wrong = [f"batch['{name}']" for name, value in leaves.items() if not _finite(value)]
        wrong += [name for name, value in metrics.items() if not _finite(value)]
        names = ", ".join(wrong) or "its loss"
        raise NonFinite(
            f"phase {phase}, update {update + 1}: {names}: not finite. Nothing of it was saved: checkpoints are from "
            f"before it, the batch is in {phase}/failed_batch.pt. Start a new run with smaller learning rates, or "
            "check the data.",
            {"update": update + 1, "wrong": wrong, "loss": float(self._losses[first])}
            | {"metrics": {name: value.detach() for name, value in metrics.items()}}
            | {"batch": {name: value.clone() for name, value in leaves.items()}},
        )


def check_weights(phase: str, module: nn.Module) -> None:
    """Raises :class:`Failure` if a parameter is not finite: a NaN gradient shows in no loss of its own update."""
    wrong = [name for name, parameter in module.named_parameters() if not _finite(parameter)]
    if wrong:
        raise Failure(
            f"phase {phase}: the network weights {', '.join(wrong[:3])} are not finite. Nothing of them was saved: "
            "checkpoints are from before. Start a new run with smaller learning rates, or check the data."
        )


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _name(key: Any) -> str:
    return "/".join(key) if isinstance(key, tuple) else str(key)
