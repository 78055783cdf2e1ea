"""Policies that act on a stretch of the episode so far: the Decision Transformer and its stochastic, online variant.

Shape letters: ``B`` windows, ``T`` time steps of each (the context), ``W`` width, ``S``, ``A`` observation and action.

TorchRL's own (``DecisionTransformer``, ``DTActor``, ``OnlineDTActor``) are wrappers of Hugging Face's GPT-2, a library
this package doesn't need otherwise; they embed no time steps and add GPT-2's positions instead, and their losses know
no padding.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from o2o_lightning.nn.actor import Policy, PolicySpec
from o2o_lightning.nn.linear import Linear
from o2o_lightning.nn.mlp import ACTIVATIONS, orthogonal_, output_layer
from o2o_lightning.nn.squashed_gaussian import SquashedGaussian

LOG_STD_BOUNDS = (-5.0, 2.0)
INIT_STD = 0.02


class Window(NamedTuple):
    """A stretch of an episode, oldest step first.

    Attributes:
        return_to_go: ``[B, T]``, what is still to be collected from each step on, scaled.
        observation: ``[B, T, S]``, normalised.
        action: ``[B, T, A]``; the last one is not looked at, it is what the policy is asked for.
        timestep: ``[B, T]`` int64, steps since the episode began.
    """

    return_to_go: Tensor
    observation: Tensor
    action: Tensor
    timestep: Tensor


@dataclass(frozen=True)
class SequenceSpec(PolicySpec):
    """Of a sequence policy, and what is needed to act with it.

    Attributes:
        width, layers, heads: of the transformer; its perceptrons are four times as wide.
        dropout: of attention, residual branches and embeddings, while learning.
        context: time steps of a window while learning.
        acting_context: most time steps that it acts on.
        horizon: longest episode, for the embedding of time steps.
        return_scale: factor on returns before the network sees them.
        target_return: raw return that it is asked for at the start of an episode.
    """

    width: int
    layers: int
    heads: int
    dropout: float
    context: int
    acting_context: int
    horizon: int
    return_scale: float
    target_return: float


class Block(nn.Module):
    """Causal self-attention, then a perceptron, each behind a LayerNorm and added to what came in."""

    def __init__(self, width: int, heads: int, dropout: float, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.heads, self.dropout, self.activation = heads, dropout, activation
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value, self.project = Linear(width, 3 * width), Linear(width, width)
        self.widen, self.narrow = Linear(width, 4 * width), Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, L, W] → [B, L, W]``; a row depends on itself and those before it."""
        dropout = self.dropout if self.training else 0.0
        parts = self.query_key_value(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        x = x + F.dropout(self.project(attended.transpose(1, 2).flatten(2)), dropout)
        hidden = self.activation(self.widen(self.mlp_norm(x)))
        return x + F.dropout(self.narrow(hidden), dropout)


class SequencePolicy(Policy):
    """A transformer over the tokens ``R_1, s_1, a_1, R_2, s_2, …``; the token of s_t predicts a_t."""

    spec: SequenceSpec
    activation: ClassVar[str]

    def __init__(self, spec: SequenceSpec) -> None:
        super().__init__()
        self.spec = spec
        width, activation = spec.width, ACTIVATIONS[self.activation]
        self.embed_return = nn.Linear(1, width)
        self.embed_observation = nn.Linear(spec.observation_dim, width)
        self.embed_action = nn.Linear(spec.action_dim, width)
        self.embedding_norm, self.final_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.blocks = nn.ModuleList(Block(width, spec.heads, spec.dropout, activation) for _ in range(spec.layers))

    def modes(self, window: Window) -> Tensor:
        """The deterministic action at each step ``[B, T, A]``; the present one's is the last."""
        raise NotImplementedError(type(self).__name__)

    def position(self, timestep: Tensor) -> Tensor | None:
        """What is added to the tokens of each step ``[B, T, W]``, None for nothing."""
        return None

    def features(self, window: Window) -> Tensor:
        """The final state of each step's observation token, ``[B, T, W]``."""
        tokens = [
            self.embed_return(window.return_to_go.unsqueeze(-1)),
            self.embed_observation(window.observation),
            self.embed_action(window.action),
        ]
        position = self.position(window.timestep)
        if position is not None:
            tokens = [token + position for token in tokens]
        # the last token is the last action's, and nothing comes after it that could look at it
        x = self.embedding_norm(torch.stack(tokens, 2).flatten(1, 2)[:, :-1])
        x = F.dropout(x, self.spec.dropout, self.training)
        for block in self.blocks:
            x = block(x)
        return self.final_norm(x[:, 1::3])  # type: ignore[no-any-return]

    def _initialise(self) -> None:
        for part in self.modules():
            if isinstance(part, nn.Linear | nn.Embedding):
                nn.init.normal_(part.weight, std=INIT_STD)
            if isinstance(part, nn.Linear):
                nn.init.zeros_(part.bias)


class DecisionTransformer(SequencePolicy):
    """Deterministic actions, GELU, and an embedding of the time step (Chen et al. 2021, arXiv 2106.01345)."""

    kind = "decision_transformer"
    activation = "gelu"

    def __init__(self, spec: SequenceSpec) -> None:
        super().__init__(spec)
        self.embed_timestep = nn.Embedding(spec.horizon + spec.context, spec.width)
        self.head = nn.Linear(spec.width, spec.action_dim)
        self._initialise()

    def forward(self, window: Window) -> Tensor:
        """Actions ``[B, T, A]``."""
        return torch.tanh(output_layer(self.features(window), self.head.weight, self.head.bias))

    modes = forward

    def position(self, timestep: Tensor) -> Tensor:
        return self.embed_timestep(timestep.clamp(max=self.embed_timestep.num_embeddings - 1))  # type: ignore[no-any-return]


class OnlineDecisionTransformer(SequencePolicy):
    """A squashed Gaussian, ReLU, and no embedding of time (Zheng et al. 2022, arXiv 2202.05607)."""

    kind = "online_decision_transformer"
    activation = "relu"

    def __init__(self, spec: SequenceSpec) -> None:
        super().__init__(spec)
        self._initialise()
        self.head_mean = nn.Linear(spec.width, spec.action_dim)
        self.head_log_std = nn.Linear(spec.width, spec.action_dim)
        for head in (self.head_mean, self.head_log_std):
            orthogonal_(head)

    def forward(self, window: Window) -> SquashedGaussian:
        """The distribution of actions, ``[B, T, A]``."""
        features, (low, high) = self.features(window), LOG_STD_BOUNDS
        mean, raw = (output_layer(features, head.weight, head.bias) for head in (self.head_mean, self.head_log_std))
        return SquashedGaussian(mean, low + 0.5 * (high - low) * (torch.tanh(raw) + 1.0))

    distribution = forward  # typed, as a call is not

    def modes(self, window: Window) -> Tensor:
        return self.distribution(window).mode()
