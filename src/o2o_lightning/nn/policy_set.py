"""Several policies of which, in each state, one acts: the one that critics value most."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from o2o_lightning.nn.actor import Actor, FloatArray, Policy, PolicySpec
from o2o_lightning.nn.critics import Critics


@dataclass(frozen=True)
class SetSpec(PolicySpec):
    """Of a set: the specifications of its policies and of the critics that choose."""

    members: tuple[dict[str, Any], ...]
    critic: dict[str, Any]


class PolicySet(Actor):
    """K policies and critics; its own action is the policies' best one."""

    kind = "policy_set"
    spec: SetSpec  # type: ignore[assignment]

    def __init__(self, members: Sequence[Actor], critic: Critics) -> None:
        Policy.__init__(self)
        first = members[0].spec
        specs = tuple(member.spec.to_dict() for member in members)
        self.spec = SetSpec(self.kind, first.observation_dim, first.action_dim, specs, critic.spec.to_dict())
        self.members, self.critic = nn.ModuleList(members), critic

    def values(self, observation: Tensor, actions: Sequence[Tensor]) -> Tensor:
        """The least critic's value ``[K, B]`` of an action ``[B, A]`` of each policy."""
        return torch.stack([self.critic(observation, action, frozen=True).amin(0) for action in actions])

    def mode(self, observation: Tensor) -> Tensor:
        actions = [member.mode(observation) for member in self.members]  # type: ignore[operator]
        best = self.values(observation, actions).argmax(0)
        return torch.stack(actions).gather(0, best[None, :, None].expand(1, *actions[0].shape)).squeeze(0)

    @torch.no_grad()
    def act(self, observation: FloatArray) -> FloatArray:
        rows = torch.from_numpy(np.atleast_2d(observation)).to(next(self.parameters()).device)
        return np.asarray(self.mode(rows).cpu().numpy().reshape(*observation.shape[:-1], -1), np.float32)
