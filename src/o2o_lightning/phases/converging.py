"""What re-evaluation and alignment share: they measure how far they have converged, and may end when they have."""

import math
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.callbacks import Callback
from tensordict import TensorDictBase
from torch import Tensor

from o2o_lightning.callbacks.convergence import Convergence, ConvergenceWatch
from o2o_lightning.methods.method import Method
from o2o_lightning.phases.base import Phase

Stop = Literal["steps", "converged", "aligned"]
MEASURED_ROWS = 2048


class Converging(Phase):
    """Base of the phases that learn from the dataset until nothing changes any more.

    They are measured on the states of a fixed share of the episodes. With ``stop`` ``converged`` these are held out,
    and the phase ends at its plateau; with ``steps``, the paper's rule, they are learned from like all others.

    Args:
        method: what is descended; it says which curves settle.
        init_from: checkpoint of the phase before.
        stop: ``steps``: after ``--trainer.max_steps``; ``converged``: at the plateau, or there if none comes before;
            ``aligned``: where the critic agrees with π_off; a re-evaluation at its plateau.
        convergence: what counts as a plateau, see :class:`o2o_lightning.callbacks.convergence.Convergence`.
        options: as in :class:`o2o_lightning.phases.base.Phase`.
    """

    goal: ClassVar[str | None] = None  # the curve that ends a phase by stop ``aligned``
    restless: ClassVar[tuple[str, ...]] = ()  # curves that jump for ever, and decide nothing

    def __init__(
        self,
        method: Method,
        init_from: str,
        stop: Stop = "steps",
        convergence: Convergence = Convergence(),
        **options: Any,
    ) -> None:
        super().__init__(method, init_from, **options)
        self.stop, self.convergence = stop, convergence
        self.watch = ConvergenceWatch(convergence, stop != "steps", self.goal if stop == "aligned" else None)
        self._measured: TensorDictBase | None = None

    def curves(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """The scalars to settle, of the fixed transitions ``[M]``: ratios, but for the method's ``magnitudes``."""
        return self.method.curves(batch)

    @property
    def cadence(self) -> int:
        return self.convergence.every

    def callbacks(self) -> list[Callback]:
        return [self.watch]

    def on_fit_start(self) -> None:
        super().on_fit_start()
        store = self.data.store
        if store is None:
            return  # the DataModule refuses in a moment, with a reason
        rows = store.hold_out(self.convergence.held_out, learn=self.stop == "steps")
        if len(rows) > MEASURED_ROWS:
            rows = rows[:: len(rows) // MEASURED_ROWS][:MEASURED_ROWS]
        self._measured = self.data.complete(self.data.prepare(store.gather(rows), self.device))

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """The convergence curves' values at this moment."""
        assert self._measured is not None
        found = {name: float(value) for name, value in self.curves(self._measured).items()}
        return self.ranks.mean_row(found)  # all processes must stop alike

    def facts(self) -> dict[str, Any]:
        total, watch = int(self.trainer.max_steps), self.watch
        end = f"{self._word} at" if self._ended_early() else "after"
        last = {name: curve[-1] for name, curve in watch.curves.items()}
        change = watch.change if math.isfinite(watch.change) else None
        found = {"settled_at": watch.settled_at, "change": change, **last}
        return {"stopped": f"{end} {self.updates} of {total}", "convergence": found}

    def conclusion(self) -> str | None:
        watch, total = self.watch, int(self.trainer.max_steps)
        if not watch.curves:
            return None
        values = ", ".join(f"{name.replace('_', ' ')} {curve[-1]:.3g}" for name, curve in watch.curves.items())
        rule = self.convergence
        if math.isfinite(watch.change):
            values += f"; changed by {watch.change:.1%} over {rule.window * rule.every:,} updates"
        if self._ended_early():
            return f"{self.phase}: {self._word} at {self.updates:,} of {total:,} updates: {values}"
        if watch.settled_at is not None:
            return f"{self.phase}: settled at {watch.settled_at:,} of {total:,} updates: {values}"
        if self.stop != "steps":
            return f"{self.phase}: not {self._word} after {self.updates:,} updates: {values}"
        return None

    @property
    def _word(self) -> str:
        return "converged" if self.watch.goal is None else "aligned"

    def _ended_early(self) -> bool:
        return self.stop != "steps" and self.watch.settled_at is not None
