"""Every phase of every algorithm, small, each from the one before; for what must hold in all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from o2o_lightning.data.module import OfflineData
from o2o_lightning.data.online import OnlineData
from o2o_lightning.data.rollout import RolloutData
from o2o_lightning.data.trajectories import TrajectoryData
from o2o_lightning.methods.awac import AWAC
from o2o_lightning.methods.bc import BC
from o2o_lightning.methods.cql import CQL
from o2o_lightning.methods.dt import DT
from o2o_lightning.methods.iql import IQL
from o2o_lightning.methods.o2 import ppo, sac, td3
from o2o_lightning.methods.o2.constraint import Threshold
from o2o_lightning.methods.o2.reference import Reference
from o2o_lightning.methods.odt import ODT
from o2o_lightning.methods.td3_bc import TD3BC
from o2o_lightning.phases.align import Align
from o2o_lightning.phases.offline import Offline
from o2o_lightning.phases.on_policy import OnPolicy
from o2o_lightning.phases.online import Online
from o2o_lightning.phases.reevaluate import Reevaluate

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
    "td3_bc": Case(None, lambda _: Offline(TD3BC(hidden=HIDDEN))),
    "reevaluate_td3": Case("td3_bc", lambda at: Reevaluate(td3.Reevaluate(hidden=HIDDEN), at)),
    "align_td3": Case("reevaluate_td3", lambda at: Align(td3.Align(), at)),
    "online_td3": Case(
        "align_td3",
        lambda at: Online(td3.Online(threshold=Threshold(0.001, 0.001), reference=FROZEN), at),
        OnlineData,
    ),
    "cql": Case(None, lambda _: Offline(CQL(hidden=HIDDEN, critic_hidden=HIDDEN, samples=3))),
    "reevaluate_sac": Case("cql", lambda at: Reevaluate(sac.Reevaluate(hidden=HIDDEN), at)),
    "align_sac": Case("reevaluate_sac", lambda at: Align(sac.Align(), at)),
    "online_sac": Case(
        "align_sac", lambda at: Online(sac.Online(threshold=Threshold(0.1, 0.1), reference=FROZEN), at), OnlineData
    ),
    "awac": Case(None, lambda _: Offline(AWAC(hidden=HIDDEN))),
    "bc": Case(None, lambda _: Offline(BC(family="gaussian", hidden=HIDDEN))),
    "iql": Case(None, lambda _: Offline(IQL(hidden=HIDDEN))),
    "reevaluate_ppo": Case("iql", lambda at: Reevaluate(ppo.Reevaluate(hidden=HIDDEN), at)),
    "online_ppo": Case(
        "reevaluate_ppo",
        lambda at: OnPolicy(
            ppo.Online(reward_scaling="dynamic", auxiliary=ppo.Auxiliary(env_steps=500), reference=FROZEN), at
        ),
        RolloutData,
    ),
}
WINDOWS = {"context": 4, "acting_context": 4, "width": 16, "layers": 1, "heads": 2}
SEQUENCES = {
    "dt": Case(None, lambda _: Offline(DT(**WINDOWS)), TrajectoryData),
    "odt": Case(None, lambda _: Offline(ODT(**WINDOWS)), TrajectoryData),
}
