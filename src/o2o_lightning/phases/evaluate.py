"""``o2o validate``, ``test`` and ``predict``: a trained policy, and nothing that learns."""

from typing import ClassVar

from o2o_lightning.checkpoint.handover import PHASES, read_handover
from o2o_lightning.methods.method import Method
from o2o_lightning.nn.actor import Policy
from o2o_lightning.phases.base import Phase
from o2o_lightning.policies.load import Which, chosen


class EvaluatePolicy(Phase):
    """Evaluates the policy of a checkpoint by the paper's protocol: deterministic actions, fixed start states.

    Args:
        init_from: checkpoint of any phase.
        policy: ``actor``, the policy that the run stands for; ``reference``, the best one that the online phase kept;
            ``offline``, the policy that everything started from.
    """

    phase: ClassVar[str] = "evaluate"
    accepts: ClassVar[tuple[str, ...]] = PHASES

    def __init__(self, init_from: str, policy: Which = "actor") -> None:
        super().__init__(Method(), init_from)
        self.which = policy

    def setup(self, stage: str) -> None:
        assert self.init_from is not None
        self.source = read_handover(self.init_from, self.accepts, f"o2o {stage}")
        self.normalizer = self.data.normalizer = self.source.build_normalizer()
        self.source.check_policy(None, self.data.sizes(), "", self.data.layout)
        self.actor = chosen(self.source, self.which)

    def policy(self) -> Policy:
        return self.actor
