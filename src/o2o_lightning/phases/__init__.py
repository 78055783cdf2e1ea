"""Phases as LightningModules: where a method's batches come from, when it ends, what it hands on."""

from o2o_lightning.phases.align import Align
from o2o_lightning.phases.clone import ClonePolicy
from o2o_lightning.phases.offline import Offline
from o2o_lightning.phases.on_policy import OnPolicy
from o2o_lightning.phases.online import Online
from o2o_lightning.phases.reevaluate import Reevaluate

__all__ = ["Align", "ClonePolicy", "Offline", "OnPolicy", "Online", "Reevaluate"]
