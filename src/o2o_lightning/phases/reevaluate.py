"""Policy re-evaluation: a fresh, optimistic critic of the offline policy, by the online evaluation rule."""

from typing import ClassVar

from o2o_lightning.checkpoint.handover import POLICIES
from o2o_lightning.phases.converging import Converging
from o2o_lightning.replay.store import owners
from o2o_lightning.replay.table import TERMINATED, TRUNCATED


class Reevaluate(Converging):
    """Fits a critic, from random weights, to the frozen policy π_off; hands on both."""

    phase: ClassVar[str] = "reevaluate"
    accepts: ClassVar[tuple[str, ...]] = POLICIES
    evaluates: ClassVar[bool] = False

    def on_fit_start(self) -> None:
        store = self.data.store
        if store is not None and "tail" in self.method.needs:
            last = store["next", "observation"][store.episodes[:, 1] - 1]
            rows = self.data.rewards(store["reward"]), store[TERMINATED], store[TRUNCATED], store.known
            labels = self.method.take_tails(self.normalizer(last).to(self.device), *rows)
            for name, column in {**labels, "tail": owners(store.episodes).float()}.items():
                store.attach(name, column)
        super().on_fit_start()
