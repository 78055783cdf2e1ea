"""Numbers that are none: found before they reach a weight, a checkpoint or an environment."""

import math
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from o2o_lightning.errors import Failure


class NonFinite(Failure):
    """A loss became infinite or NaN.

    ``dump`` is what an engineer needs to see why, empty in an innocent process; ``file``, of the run directory, is for
    it.
    """

    def __init__(self, message: str, dump: dict[str, Any], file: str = "") -> None:
        super().__init__(message)
        self.dump, self.file = dump, file


class ChunkRecord:
    """The losses of one chunk, and the gate that keeps a step from being made where one of them is not finite.

    On a CPU a look at a loss costs a third of a microsecond, so that the run stops before the step. A GPU would have to
    be waited for at every update; there fused Adam skips the step, and all that follow in the chunk, by the same flag
    that a GradScaler sets, and the run stops when the host looks at it. Either way no weight ever takes the step.
    """

    def __init__(self, phase: str, rank: int = 0) -> None:
        self.phase = phase
        self._file = f"{phase}/failed_batch{f'.rank-{rank}' if rank else ''}.pt"
        self._losses: list[Tensor] = []
        self._verdicts: list[Tensor] = []
        self._rows: list[tuple[int, TensorDictBase, dict[str, Tensor]]] = []
        self._bad: Tensor | None = None

    def add(self, update: int, batch: TensorDictBase, loss: Tensor, metrics: dict[str, Tensor]) -> None:
        """Remembers one loss of gradient update ``update``, and what it was made of."""
        # as they are: detaching each costs more than the rest, and their graphs are empty after the backward pass
        self._losses.append(loss)
        self._rows.append((update, batch, metrics))

    def admit(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Keeps ``optimizer`` from its next step where ``loss``, the mean of all processes, is not finite."""
        self._verdicts.append(loss)
        if readable(loss):
            if not math.isfinite(loss.item()):
                self.check()
            return
        bad = (~torch.isfinite(loss.detach())).float()
        self._bad = bad if self._bad is None else torch.maximum(self._bad, bad)
        optimizer.found_inf = self._bad  # type: ignore[attr-defined]

    @torch.no_grad()
    def check(self, last: bool = False) -> None:
        """Raises :class:`NonFinite` that names the first offending update and tensor; of the ``last`` loss at least."""
        if not self._verdicts:
            return
        finite = torch.isfinite(torch.stack(self._verdicts))
        if bool(finite.all()) and not last:
            return
        first = len(finite) - 1 if bool(finite.all()) else int((~finite).nonzero()[0])
        update, batch, metrics = self._rows[first]
        where = f"phase {self.phase}, update {update + 1}"
        kept = "The step was not made, and nothing of it was saved: checkpoints are from before it"
        advice = "Start a new run with smaller learning rates, or check the data."
        if _finite(self._losses[first]):
            raise NonFinite(f"{where}: the loss of another process is not finite. {kept}. {advice}", {})
        leaves = {_name(key): value for key, value in batch.items(True, True)}
        wrong = [f"batch['{name}']" for name, value in leaves.items() if not _finite(value)]
        wrong += [name for name, value in metrics.items() if not _finite(value)]
        names = ", ".join(wrong) or "its loss"
        raise NonFinite(
            f"{where}: {names}: not finite. {kept}, the batch is in {self._file}. {advice}",
            {"update": update + 1, "wrong": wrong, "loss": float(self._losses[first])}
            | {"metrics": {name: value.detach() for name, value in metrics.items()}}
            | {"batch": {name: value.clone() for name, value in leaves.items()}},
            self._file,
        )


def readable(loss: Tensor) -> bool:
    """Whether a look at ``loss`` waits for nothing."""
    return loss.is_cpu


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
