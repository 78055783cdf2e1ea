"""What a policy is, and TD3's. Every actor maps normalised observations ``[B, S]`` to actions in ``[-1, 1]^A``."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from o2o_lightning.nn.mlp import MLP, Network, Spec, orthogonal_

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class PolicySpec(Spec):
    """Of a policy of any family: its name, S and A."""

    kind: str
    observation_dim: int
    action_dim: int


@dataclass(frozen=True)
class ActorSpec(PolicySpec):
    """Of an actor.

    Attributes:
        hidden: widths of the hidden layers.
        activation: between them; imported policies may have another than ours.
        mean: of a Gaussian: ``tanh``, or ``linear`` as in Stable-Baselines3's PPO.
    """

    hidden: tuple[int, ...]
    activation: str = "relu"
    mean: str = "tanh"


class Policy(Network):
    """Base of all policies; ``kind`` names the family in checkpoints and chooses what must be cloned."""

    kind: ClassVar[str]
    spec: PolicySpec


class Actor(Policy):
    """A policy that looks at the present observation only: what every phase but an offline one works on.

    ``widths`` are the family's own, where no others are asked for; ``outputs`` the network's, for an action dimension.
    """

    spec: ActorSpec
    widths: ClassVar[tuple[int, ...]] = (256, 256)
    outputs: ClassVar[int] = 1

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        hidden: Sequence[int] | None = None,
        activation: str = "relu",
        mean: str = "tanh",
    ) -> None:
        super().__init__()
        hidden = tuple(self.widths if hidden is None else hidden)
        self.spec = ActorSpec(self.kind, observation_dim, action_dim, hidden, activation, mean)
        self.body = MLP(observation_dim, hidden, self.outputs * action_dim, activation=activation)
        self._initialise()

    def _initialise(self) -> None:
        """The body's weights, and what else the family learns."""
        orthogonal_(self.body)

    def mode(self, observation: Tensor) -> Tensor:
        """The deterministic action ``[B, A]``: what is evaluated, and the anchor of the alignment."""
        raise NotImplementedError(type(self).__name__)

    def candidates(self, observation: Tensor, noise: Tensor, spread: float) -> Tensor:
        """Actions ``[N, B, A]`` to choose among, made of standard normal ``noise``: the policy's own where it samples.

        Those of a deterministic policy lie around its action, with a deviation of ``spread``.
        """
        return (self.mode(observation) + spread * noise).clamp(-1.0, 1.0)

    def misfit(self, observation: Tensor, action: Tensor) -> Tensor:
        """How far the policy is from an ``action`` ``[B, A]``: a squared distance, or minus a log-density, ``[B]``."""
        return (self.mode(observation) - action).square().sum(-1)

    def act(self, observation: FloatArray) -> FloatArray:
        """:meth:`mode` on numpy observations ``[S]`` or ``[B, S]``, for stepping environments."""
        raise NotImplementedError(type(self).__name__)


class DeterministicActor(Actor):
    """TD3's policy: ``S → hidden → A``, ReLU, tanh output."""

    kind = "deterministic"

    def forward(self, observation: Tensor) -> Tensor:
        """``[B, S] → [B, A]``."""
        return torch.tanh(self.body(observation))

    def mode(self, observation: Tensor) -> Tensor:
        return self.forward(observation)

    def act(self, observation: FloatArray) -> FloatArray:
        return np.tanh(self.body.numpy(observation))


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

    def candidates(self, observation: Tensor, noise: Tensor, spread: float) -> Tensor:
        return self.sampled(observation, noise)

    def explore(self, observation: FloatArray, generator: np.random.Generator) -> FloatArray:
        """:meth:`perform` with noise of its own."""
        shape = (*observation.shape[:-1], self.spec.action_dim)
        return self.perform(observation, generator.standard_normal(shape, dtype=np.float32))

    def perform(self, observation: FloatArray, noise: FloatArray) -> FloatArray:
        """:meth:`sampled` on numpy observations ``[S]`` or ``[B, S]``, for stepping environments."""
        raise NotImplementedError(type(self).__name__)

    def sampled_log_prob(self, observation: Tensor, noise: Tensor) -> Tensor:
        """Log-density ``[B]`` of what :meth:`sampled` draws, before a Gaussian's clip to the bounds."""
        raise NotImplementedError(type(self).__name__)
