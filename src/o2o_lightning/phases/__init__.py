"""The phases as LightningModules: which networks learn, which are frozen, what a step is, what is handed on."""

from o2o_lightning.phases.align.sac import AlignSAC
from o2o_lightning.phases.align.td3 import AlignTD3
from o2o_lightning.phases.clone import ClonePolicy
from o2o_lightning.phases.offline.awac import AWAC
from o2o_lightning.phases.offline.bc import BC
from o2o_lightning.phases.offline.cql import CQL
from o2o_lightning.phases.offline.dt import DT
from o2o_lightning.phases.offline.iql import IQL
from o2o_lightning.phases.offline.odt import ODT
from o2o_lightning.phases.offline.td3_bc import TD3BC
from o2o_lightning.phases.online.ppo import OnlinePPO
from o2o_lightning.phases.online.sac import OnlineSAC
from o2o_lightning.phases.online.td3 import OnlineTD3
from o2o_lightning.phases.reevaluate.ppo import ReevaluatePPO
from o2o_lightning.phases.reevaluate.sac import ReevaluateSAC
from o2o_lightning.phases.reevaluate.td3 import ReevaluateTD3

__all__ = [
    "AWAC",
    "BC",
    "CQL",
    "DT",
    "IQL",
    "ODT",
    "TD3BC",
    "AlignSAC",
    "AlignTD3",
    "ClonePolicy",
    "OnlinePPO",
    "OnlineSAC",
    "OnlineTD3",
    "ReevaluatePPO",
    "ReevaluateSAC",
    "ReevaluateTD3",
]
