"""A policy of another library, taken apart: plain tensors, and what they mean."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from o2o_lightning.errors import UserError
from o2o_lightning.nn.actor import Actor, ActorSpec, FloatArray
from o2o_lightning.nn.actors import build_actor
from o2o_lightning.nn.normalizer import Normalizer

Array = NDArray[np.float64]
Linear = tuple[Array, Array]  # weight [out, in], bias [out]

MAX_BYTES = 2**29
LOG_STD_BOUNDS = (-20.0, 2.0)
FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "relu": lambda x: np.maximum(x, 0.0),
    "tanh": np.tanh,
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0.0))),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "silu": lambda x: x / (1.0 + np.exp(-x)),
}


@dataclass
class ImportedPolicy:
    """A multilayer perceptron with one of our output distributions.

    Attributes:
        file: where it comes from, for messages.
        format: what it was recognised as.
        algorithm: what trained it, where the file says so.
        family: ``deterministic``, ``gaussian`` or ``squashed_gaussian``.
        hidden: hidden layers.
        mean: output layer of the mean, or of the deterministic action before tanh.
        log_std: output layer of log σ, a vector ``[A]``, or None.
        activation: after each hidden layer.
        mean_kind: ``tanh`` or ``linear`` mean of a Gaussian.
        log_std_scale, log_std_offset: affine map of the log σ output.
        bounds: the range of actions that it was trained with, [−1, 1] included; None where that is not known.
        normalizer: of observations; part of the policy.
        env_id: environment, where the file names it.
        notes: what was assumed, one line each.
        altered: what was changed on purpose, so that the policy is no longer the source's own; None for nothing.
    """

    file: str
    format: str
    algorithm: str
    family: str
    hidden: list[Linear]
    mean: Linear
    log_std: Linear | Array | None = None
    activation: str = "relu"
    mean_kind: str = "tanh"
    log_std_scale: float = 1.0
    log_std_offset: float = 0.0
    bounds: tuple[Array, Array] | None = None
    normalizer: Normalizer | None = None
    env_id: str | None = None
    notes: list[str] = field(default_factory=list)
    altered: str | None = None

    @property
    def observation_dim(self) -> int:
        """S."""
        return int((self.hidden[0] if self.hidden else self.mean)[0].shape[1])

    @property
    def action_dim(self) -> int:
        """A."""
        return int(self.mean[0].shape[0])

    @property
    def spec(self) -> ActorSpec:
        """Family and sizes, as ours."""
        widths = tuple(len(bias) for _, bias in self.hidden)
        kind = self.mean_kind if self.family == "gaussian" else "tanh"
        return ActorSpec(self.family, self.observation_dim, self.action_dim, widths, self.activation, kind)

    def actions(self, observation: FloatArray) -> FloatArray:
        """The source's own deterministic actions in ``[-1, 1]``, by plain float64 arithmetic on its tensors.

        Independent of our networks on purpose: the import is checked against it. ``[B, S] → [B, A]``.
        """
        x = observation.astype(np.float64)
        if self.normalizer is not None:
            scale = self.normalizer.std.numpy().astype(np.float64) + self.normalizer.eps
            x = (x - self.normalizer.mean.numpy().astype(np.float64)) / scale
            if self.normalizer.clip is not None:
                x = np.clip(x, -self.normalizer.clip, self.normalizer.clip)
        for weight, bias in self.hidden:
            x = FUNCTIONS[self.activation](x @ weight.T + bias)
        x = x @ self.mean[0].T + self.mean[1]
        if self.family != "gaussian" or self.mean_kind == "tanh":
            x = np.tanh(x)
        if self.bounds is not None:
            low, high = self.bounds
            x = (x - low) / (high - low) * 2.0 - 1.0
        return np.asarray(np.clip(x, -1.0, 1.0), np.float32)

    def build_actor(self) -> Actor:
        """The same policy as one of our actors."""
        actor = build_actor(self.spec)
        mean, log_std = self._unit_heads()
        state = actor.state_dict()
        if self.family == "squashed_gaussian":
            assert isinstance(log_std, tuple)
            mean = (np.concatenate((mean[0], log_std[0])), np.concatenate((mean[1], log_std[1])))
            state["log_std_scale"] = torch.tensor(self.log_std_scale)
            state["log_std_offset"] = torch.tensor(self.log_std_offset)
        elif self.family == "gaussian":
            state["raw_log_std"] = torch.from_numpy(np.asarray(log_std, np.float32))
        for i, (weight, bias) in enumerate([*self.hidden, mean]):
            state[f"body.linears.{i}.weight"] = torch.from_numpy(weight.astype(np.float32))
            state[f"body.linears.{i}.bias"] = torch.from_numpy(bias.astype(np.float32))
        actor.load_state_dict(state)
        return actor

    def build_normalizer(self) -> Normalizer:
        """Its normaliser, the identity where it has none."""
        return self.normalizer or Normalizer.identity(self.observation_dim)

    def _unit_heads(self) -> tuple[Linear, Linear | Array | None]:
        if self.bounds is None:
            return self.mean, self.log_std
        half, low = (self.bounds[1] - self.bounds[0]) / 2.0, self.bounds[0]
        assert not isinstance(self.log_std, tuple) and self.log_std is not None
        mean = (self.mean[0] / half[:, None], (self.mean[1] - low) / half - 1.0)
        return mean, self.log_std - np.log(half)


def checked(policy: ImportedPolicy) -> ImportedPolicy:
    """``policy`` if its layers fit one another and hold numbers.

    Raises:
        UserError: sizes that do not fit, NaN or infinity, or an activation that we lack.
    """
    if policy.activation not in FUNCTIONS:
        raise UserError(
            f"policy {policy.file}: its activation '{policy.activation}' is none of {', '.join(FUNCTIONS)}. "
            "Wrap it in a Python function and import that: `o2o policy import module:function`."
        )
    width = policy.observation_dim
    layers = [*policy.hidden, policy.mean]
    heads = [policy.log_std] if isinstance(policy.log_std, tuple) else []
    for i, (weight, bias) in enumerate([*layers, *heads]):
        if i == len(layers):
            width = layers[-1][0].shape[1]
        if weight.ndim != 2 or weight.shape[1] != width or bias.shape != weight.shape[:1]:
            raise UserError(
                f"policy {policy.file}: layer {i} has weight {weight.shape} and bias {bias.shape}, the one before "
                f"gives {width} values. The file is mixed up or of an architecture that is not known."
            )
        width = weight.shape[0]
    actions = policy.action_dim
    log_std = policy.log_std[1] if isinstance(policy.log_std, tuple) else policy.log_std
    if log_std is not None and log_std.shape != (actions,):
        raise UserError(
            f"policy {policy.file}: log σ has {log_std.size} values, the mean has {actions}. Pass another file."
        )
    if policy.normalizer is not None and len(policy.normalizer.mean) != policy.observation_dim:
        raise UserError(
            f"policy {policy.file}: it takes {policy.observation_dim} observation values, its normalisation has "
            f"{len(policy.normalizer.mean)}. Pass the --normalizer that belongs to it."
        )
    arrays = [part for layer in [*layers, *heads] for part in layer]
    arrays += [np.array([policy.log_std_scale, policy.log_std_offset]), *([] if log_std is None else [log_std])]
    normalizer = policy.build_normalizer()
    arrays += [normalizer.mean.numpy(), deviation := normalizer.std.numpy() + normalizer.eps]
    if not all(np.isfinite(array).all() for array in arrays) or not (deviation > 0).all():
        raise UserError(
            f"policy {policy.file}: its numbers hold NaN, infinity, or observations of no deviation. Pass another "
            "checkpoint of it."
        )
    return policy
