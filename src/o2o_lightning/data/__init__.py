"""Datasets, replay, and the DataModules that phases draw from."""

from o2o_lightning.data.module import OfflineData
from o2o_lightning.data.online import OnlineData

__all__ = ["OfflineData", "OnlineData"]
