"""The phases as LightningModules: which networks learn, which are frozen, what a step is, what is handed on."""

from o2o_lightning.phases.align.td3 import AlignTD3
from o2o_lightning.phases.offline.iql import IQL
from o2o_lightning.phases.offline.td3_bc import TD3BC
from o2o_lightning.phases.online.ppo import OnlinePPO
from o2o_lightning.phases.online.td3 import OnlineTD3
from o2o_lightning.phases.reevaluate.ppo import ReevaluatePPO
from o2o_lightning.phases.reevaluate.td3 import ReevaluateTD3

__all__ = ["IQL", "TD3BC", "AlignTD3", "OnlinePPO", "OnlineTD3", "ReevaluatePPO", "ReevaluateTD3"]
