"""What a policy is. Every actor maps normalised observations ``[B, S]`` to actions in ``[-1, 1]^A``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from o2o_lightning.nn.network import Network

FloatArray = NDArray[np.float32]


class PolicySpec(Protocol):
    """What is needed to rebuild a policy of any family before its weights are loaded."""

    @property
    def kind(self) -> str: ...

    @property
    def observation_dim(self) -> int: ...

    @property
    def action_dim(self) -> int: ...

    def to_dict(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class ActorSpec:
    """What is needed to rebuild an actor before its weights are loaded; primitives only.

    Attributes:
        kind: name of the family.
        observation_dim, action_dim: S and A.
        hidden: widths of the hidden layers.
        activation: between them; imported policies may have another than ours.
        mean: of a Gaussian: ``tanh``, or ``linear`` as in Stable-Baselines3's PPO.
    """

    kind: str
    observation_dim: int
    action_dim: int
    hidden: tuple[int, ...]
    activation: str = "relu"
    mean: str = "tanh"

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "hidden": list(self.hidden)}

    @staticmethod
    def from_dict(state: dict[str, Any]) -> ActorSpec:
        return ActorSpec(**{**state, "hidden": tuple(state["hidden"])})


class Policy(Network):
    """Base of all policies; ``kind`` names the family in checkpoints and chooses what must be cloned."""

    kind: ClassVar[str]
    spec: PolicySpec


class Actor(Policy):
    """A policy that looks at the present observation only: what every phase but an offline one works on."""

    spec: ActorSpec

    def __init__(
        self, observation_dim: int, action_dim: int, hidden: Sequence[int], activation: str = "relu", mean: str = "tanh"
    ) -> None:
        super().__init__()
        self.spec = ActorSpec(self.kind, observation_dim, action_dim, tuple(hidden), activation, mean)

    def mode(self, observation: Tensor) -> Tensor:
        """The deterministic action ``[B, A]``: what is evaluated, and the anchor of the alignment."""
        raise NotImplementedError(type(self).__name__)

    def act(self, observation: FloatArray) -> FloatArray:
        """:meth:`mode` on numpy observations ``[S]`` or ``[B, S]``, for stepping environments."""
        with torch.no_grad():
            device = next(self.parameters()).device
            action: FloatArray = self.mode(torch.from_numpy(observation).to(device)).float().cpu().numpy()
        return action


class Density(NamedTuple):
    """What one pass of a stochastic actor says of given actions ``[B, A]``.

    Attributes:
        log_prob: their log-density ``[B]``.
        entropy: of the policy in these states ``[B]``: the closed form where the family has one, else an estimate from
            one sample, whose gradient is exact.
        mode: the policy's own deterministic action ``[B, A]``.
    """

    log_prob: Tensor
    entropy: Tensor
    mode: Tensor


class StochasticActor(Actor):
    """An actor that is a density, and so can be fitted to actions by their likelihood."""

    def density(self, observation: Tensor, action: Tensor, noise: Tensor) -> Density:
        """See :class:`Density`; the entropy's sample, where one is needed, is made of standard normal ``noise``."""
        raise NotImplementedError(type(self).__name__)

    def sampled(self, observation: Tensor, noise: Tensor) -> Tensor:
        """Actions ``[B, A]`` as they are executed, made of standard normal ``noise`` ``[B, A]``."""
        raise NotImplementedError(type(self).__name__)

    def perform(self, observation: FloatArray, noise: FloatArray) -> FloatArray:
        """:meth:`sampled` on numpy observations ``[S]`` or ``[B, S]``, for stepping environments."""
        raise NotImplementedError(type(self).__name__)

    def sampled_log_prob(self, observation: Tensor, noise: Tensor) -> Tensor:
        """Log-density ``[B]`` of what :meth:`sampled` draws, before a Gaussian's clip to the bounds."""
        raise NotImplementedError(type(self).__name__)
