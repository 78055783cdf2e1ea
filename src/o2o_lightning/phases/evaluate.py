"""``o2o validate``, ``test`` and ``predict``: a trained policy, and nothing that learns."""

from typing import Any, ClassVar

from tensordict import TensorDictBase
from torch import Tensor

from o2o_lightning.checkpoint.handover import PHASES, read_handover
from o2o_lightning.envs.episodes import Evaluation
from o2o_lightning.methods.method import Method
from o2o_lightning.nn.actor import Policy
from o2o_lightning.phases.base import Phase
from o2o_lightning.policies.history import player_of
from o2o_lightning.policies.load import Which, chosen


class EvaluatePolicy(Phase):
    """Evaluates the policy of a checkpoint by the paper's protocol: deterministic actions, fixed start states.

    Args:
        init_from: checkpoint of any phase.
        policy: ``actor``, the policy as it was saved; ``reference``, the best one that the online phase kept;
            ``offline``, the policy that everything started from.
    """

    phase: ClassVar[str] = "evaluate"
    accepts: ClassVar[tuple[str, ...]] = PHASES

    def __init__(self, init_from: str, policy: Which = "actor") -> None:
        super().__init__(Method(), init_from)
        self.which = policy
        self.result: Evaluation | None = None

    def setup(self, stage: str) -> None:
        assert self.init_from is not None
        self.source = read_handover(self.init_from, self.accepts, f"o2o {stage}")
        self.normalizer = self.data.normalizer = self.source.build_normalizer()
        self.source.check_policy(None, self.data.sizes(), "", self.data.layout)
        self.actor = chosen(self.source, self.which)
        if stage == "predict" and self.data.store is not None:
            # all at once: a sequence policy needs each observation's own episode
            labels = player_of(self.actor, self.normalizer).label(self.data.store, self.trainer.strategy.root_device)
            self.data.store.attach("policy_action", labels)

    def policy(self) -> Policy:
        return self.actor

    def configure_callbacks(self) -> list[Any]:
        return []

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._report()

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._report()

    def predict_step(self, batch: TensorDictBase, batch_idx: int) -> Tensor:
        """Actions ``[B, A]`` in ``[-1, 1]`` at the dataset's observations."""
        return batch["policy_action"]  # type: ignore[no-any-return]

    def _report(self) -> None:
        self.result = self.evaluate()
        self.log("return_mean", self.result.return_mean, batch_size=1)
        if self.result.score is not None:
            self.log("score", self.result.score, batch_size=1)
