"""Datasets, replay, and the DataModules that phases draw from."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from o2o_lightning.data.module import OfflineData
    from o2o_lightning.data.online import OnlineData
    from o2o_lightning.data.rollout import RolloutData
    from o2o_lightning.data.trajectories import TrajectoryData

__all__ = ["OfflineData", "OnlineData", "RolloutData", "TrajectoryData"]

_HOMES = {"OfflineData": "module", "OnlineData": "online", "RolloutData": "rollout", "TrajectoryData": "trajectories"}


def __getattr__(name: str) -> Any:
    # on demand: the DataModules need `envs`, which needs `data.scores`, and so this file
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
