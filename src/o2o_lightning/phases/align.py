"""Value alignment: the critic is calibrated to the offline policy, while a copy of the policy hunts its errors."""

import math
from typing import Any, ClassVar, cast

import torch
from tensordict import TensorDictBase
from torch import Tensor

from o2o_lightning.checkpoint.handover import POLICIES
from o2o_lightning.methods.actor_critic import ActorCritic
from o2o_lightning.objectives.alignment import action_distance
from o2o_lightning.objectives.bellman import least
from o2o_lightning.objectives.diagnostics import Alignment, anchor_agreement, relative_drift
from o2o_lightning.phases.converging import Converging

STATES, PERTURBATIONS, SPREAD = 2048, 32, 0.5


class Align(Converging):
    """Calibrates the critic to π_off; each evaluation also measures how well the two agree."""

    phase: ClassVar[str] = "align"
    accepts: ClassVar[tuple[str, ...]] = ("reevaluate", *POLICIES)
    # the actor climbs Q all the time: whether its action is worth a little more or less than the anchor's never settles
    restless: ClassVar[tuple[str, ...]] = ("anchor_share",)
    goal: ClassVar[str | None] = "perturbed_share"

    @property
    def aligned(self) -> bool:  # type: ignore[override]
        return self.stop != "aligned" or self.watch.settled_at is not None

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "aligned": self.aligned}

    def before_evaluation(self) -> None:
        self.log_now({f"anchor_{name}": float(value) for name, value in self.agreement()._asdict().items()})

    @torch.no_grad()
    def agreement(self) -> Alignment:
        """Agreement over 2048 dataset states and 32 actions spread by σ = 0.5 around each anchor.

        Always the same states and perturbations, drawn from a stream of their own: measuring never changes training.
        """
        store = self.data.store
        assert store is not None
        stream = torch.Generator().manual_seed(0)
        batch = self.data.prepare(store.gather(store.sample_rows(STATES, stream)), self.device)
        observation = batch["observation"]
        anchor = self.networks.offline_actor.mode(observation)
        values = self._around(observation, anchor, PERTURBATIONS, stream)
        return anchor_agreement(least(self.networks.critic(observation, anchor)), values)

    def curves(self, batch: TensorDictBase) -> dict[str, Tensor]:
        observation, anchor = batch["observation"], batch["anchor"]
        action = self.networks.actor.mode(observation)
        q_anchor = least(self.networks.critic(observation, anchor))
        around = self._around(observation, anchor, 8, torch.Generator().manual_seed(0))
        others = torch.cat((around, least(self.networks.critic(observation, action))[None]))
        return {
            "anchor_share": anchor_agreement(q_anchor, others).share,
            "perturbed_share": anchor_agreement(q_anchor, around).share,
            "anchor_drift": relative_drift(q_anchor, batch["anchor_value"]),
            "actor_distance": action_distance(action, anchor, math.inf).mean(),
        }

    @property
    def networks(self) -> ActorCritic:
        """The method, which has an actor, critics and π_off."""
        return cast(ActorCritic, self.method)

    def _around(self, observation: Tensor, anchor: Tensor, count: int, stream: torch.Generator) -> Tensor:
        """Values ``[N, B]`` of ``count`` actions spread around each anchor."""
        values = []
        for _ in range(count):
            noise = torch.randn(anchor.shape, generator=stream).to(self.device)
            values.append(least(self.networks.critic(observation, (anchor + SPREAD * noise).clamp(-1.0, 1.0))))
        return torch.stack(values)
