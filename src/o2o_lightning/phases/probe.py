"""How far a policy can be pushed before its episodes say that it is worse: a threshold that is its own."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, cast

import torch

from o2o_lightning.engine.noise import NoiseBlocks
from o2o_lightning.methods.o2.constraint import Constrained
from o2o_lightning.nn.targets import hard_update
from o2o_lightning.objectives.diagnostics import ONE_SIDED, paired_gap

if TYPE_CHECKING:
    from o2o_lightning.phases.online import Online

LEVELS = 7  # divergences at which episodes are played, each twice the one before, up to the threshold's end
MOST = 2000  # steps of the policy; a critic that pushes it no farther than that is no danger
SEED = 0


def safe_divergence(phase: Online, end: float) -> float:
    """The largest of the levels to which π_off's own critic can push it, and its episodes not be proved worse.

    Half of the least level where that is one too many; the threshold's ``end`` where none is. A copy is pushed, by the
    method's own loss without the constraint, on the dataset's states: nothing of the run changes, and the episodes
    are of start states at which no evaluation begins.
    """
    method = copy.deepcopy(cast(Constrained, phase.method))
    method.become(method.offline_actor)
    hard_update(method.reference_policy, method.offline_actor)
    rule = method.threshold
    with torch.no_grad():
        method.log_multiplier.fill_(-math.inf)
    levels: list[float] = [end / 2**k for k in reversed(range(LEVELS))]
    held = levels[0] / 2
    batch, noise = phase.sampled(), NoiseBlocks(SEED, phase.device)
    climbing = torch.optim.Adam(method.actor.parameters(), lr=method.actor_lr)
    before = phase.judge(method.offline_actor, rule.episodes)
    for _ in range(MOST):
        loss = method.climb(batch, noise.draw(method.noise(tuple(batch["action"].shape))))
        divergence = float(loss.metrics["divergence"].detach().mean())
        if levels and divergence >= levels[0]:
            result = phase.judge(method.actor, rule.episodes)
            phase.log_now({"probe_divergence": divergence, "probe_return": result.return_mean})
            if paired_gap(result.returns, before.returns) < -ONE_SIDED:
                return held
            while levels and divergence >= levels[0]:
                held = levels.pop(0)
        if not levels:
            break
        gradients = torch.autograd.grad(loss.value, list(method.actor.parameters()))
        for parameter, gradient in zip(method.actor.parameters(), gradients, strict=True):
            parameter.grad = gradient
        climbing.step()
    return end
