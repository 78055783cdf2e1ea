"""The offline phase: a policy from the dataset alone."""

from typing import Any, ClassVar, cast

from o2o_lightning.data.trajectories import TrajectoryData
from o2o_lightning.errors import UserError
from o2o_lightning.methods.method import Method, Task
from o2o_lightning.phases.base import Phase


class Offline(Phase):
    """Learns from the dataset, from scratch; hands on the policy, and a critic where the method makes one.

    Args:
        method: what is descended.
        options: as in :class:`o2o_lightning.phases.base.Phase`.
    """

    phase: ClassVar[str] = "offline"

    def __init__(self, method: Method, **options: Any) -> None:
        super().__init__(method, None, **options)

    def setup(self, stage: str) -> None:
        if stage == "fit" or not self.is_built:
            self._select()  # first: observations are normalised by what is learned from
        super().setup(stage)

    def task(self) -> Task:
        if "window" not in self.method.needs:
            return super().task()
        data = self.data
        if not isinstance(data, TrajectoryData):
            raise UserError(
                f"offline={self.method.name}: it needs --data o2o_lightning.data.trajectories.TrajectoryData."
            )
        return super().task()._replace(horizon=data.longest(), best_return=data.manifest()["return_max"])

    def _select(self) -> None:
        """Leaves the rows that a method of imitation learns from: all, or those of the best episodes."""
        store, fraction = self.data.store, getattr(self.method, "fraction", None)
        if store is None:
            if fraction is not None:
                raise UserError("no dataset: a policy is cloned from one. Pass --data.dataset.")
            return
        self._td_rows = store.td_rows
        if fraction == 1.0:
            store.td_rows = None  # imitation needs no successor
        elif fraction is not None:
            count = max(int(cast(float, fraction) * int(store.complete.sum())), 1)
            store.td_rows = store.top_episodes(count, td_only=False)
