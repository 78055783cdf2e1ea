"""Every phase of every algorithm, small, each from the one before; for what must hold in all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from o2o_lightning.data.module import OfflineData
from o2o_lightning.data.online import OnlineData
from o2o_lightning.data.rollout import RolloutData
from o2o_lightning.data.trajectories import TrajectoryData
from o2o_lightning.phases import (
    AWAC,
    BC,
    CQL,
    DT,
    IQL,
    ODT,
    TD3BC,
    AlignSAC,
    AlignTD3,
    OnlinePPO,
    OnlineSAC,
    OnlineTD3,
    ReevaluatePPO,
    ReevaluateSAC,
    ReevaluateTD3,
)
from o2o_lightning.phases.settings import Auxiliary, Reference, Threshold

HIDDEN = (16, 16)
FROZEN = Reference("frozen", "aligned")


@dataclass
class Case:
    """One phase: ``make(checkpoint of the phase it starts from)``, and its data for batches of a size."""

    after: str | None
    make: Callable[[str], Any]
    kind: type[OfflineData] = OfflineData

    def data(self, dataset: str, batch: int, processes: int, updates: int) -> OfflineData:
        """Data for ``updates`` gradient updates by ``processes`` that share ``batch`` transitions a update."""
        shared: dict[str, Any] = {"dataset": dataset, "batch_size": batch // processes, "chunk": 4, "eval_episodes": 2}
        if self.kind is OnlineData:
            # no update before each has two transitions
            steps = (updates + 1) * processes
            return OnlineData(env_steps=steps, warmup_steps=0, eval_every=10_000, **shared)
        if self.kind is RolloutData:
            return RolloutData(
                env_steps=batch * (updates // 2), rollout=batch, epochs=2, num_envs=2 // processes, eval_every=10_000,
                **shared,
            )  # fmt: skip
        return self.kind(eval_every_updates=0, **shared)


CASES = {
    "td3_bc": Case(None, lambda _: TD3BC(hidden=HIDDEN)),
    "reevaluate_td3": Case("td3_bc", lambda at: ReevaluateTD3(at, hidden=HIDDEN)),
    "align_td3": Case("reevaluate_td3", AlignTD3),
    "online_td3": Case(
        "align_td3", lambda at: OnlineTD3(at, threshold=Threshold(0.001, 0.001), reference=FROZEN), OnlineData
    ),
    "cql": Case(None, lambda _: CQL(hidden=HIDDEN, critic_hidden=HIDDEN, samples=3)),
    "reevaluate_sac": Case("cql", lambda at: ReevaluateSAC(at, hidden=HIDDEN)),
    "align_sac": Case("reevaluate_sac", AlignSAC),
    "online_sac": Case(
        "align_sac", lambda at: OnlineSAC(at, threshold=Threshold(0.1, 0.1), reference=FROZEN), OnlineData
    ),
    "awac": Case(None, lambda _: AWAC(hidden=HIDDEN)),
    "bc": Case(None, lambda _: BC("gaussian", hidden=HIDDEN)),
    "iql": Case(None, lambda _: IQL(hidden=HIDDEN)),
    "reevaluate_ppo": Case("iql", lambda at: ReevaluatePPO(at, hidden=HIDDEN)),
    "online_ppo": Case(
        "reevaluate_ppo",
        lambda at: OnlinePPO(at, reward_scaling="dynamic", auxiliary=Auxiliary(env_steps=500), reference=FROZEN),
        RolloutData,
    ),
}
WINDOWS = {"context": 4, "acting_context": 4, "width": 16, "layers": 1, "heads": 2}
SEQUENCES = {
    "dt": Case(None, lambda _: DT(**WINDOWS), TrajectoryData),
    "odt": Case(None, lambda _: ODT(**WINDOWS), TrajectoryData),
}
