"""What value alignment shares across algorithms: where it starts from, and how it is measured."""

from __future__ import annotations

from typing import ClassVar

import torch

from o2o_lightning.agents.base import ActorCritic
from o2o_lightning.checkpoint.handover import POLICIES
from o2o_lightning.envs.evaluate import Evaluation
from o2o_lightning.objectives.diagnostics import Alignment, anchor_agreement
from o2o_lightning.phases.base import Phase

STATES, PERTURBATIONS, SPREAD = 2048, 32, 0.5


class AlignPhase(Phase):
    """Base of the alignment phases; each evaluation also measures how well critic and π_off agree."""

    phase: ClassVar[str] = "align"
    accepts: ClassVar[tuple[str, ...]] = ("reevaluate", *POLICIES)
    needs_critic: ClassVar[bool] = True
    agent: ActorCritic

    def run_evaluation(self) -> Evaluation:
        self.log_now({f"anchor_{name}": float(value) for name, value in self.agreement()._asdict().items()})
        return super().run_evaluation()

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
        anchor = self.agent.offline_actor.mode(observation)
        values = []
        for _ in range(PERTURBATIONS):
            noise = torch.randn(anchor.shape, generator=stream).to(self.device)
            values.append(self.agent.critic(observation, (anchor + SPREAD * noise).clamp(-1.0, 1.0)).amin(0))
        return anchor_agreement(self.agent.critic(observation, anchor).amin(0), torch.stack(values))
