"""Datasets, replay, and the DataModules that phases draw from."""

from o2o_lightning.data.module import OfflineData
from o2o_lightning.data.online import OnlineData
from o2o_lightning.data.rollout import RolloutData

__all__ = ["OfflineData", "OnlineData", "RolloutData"]
