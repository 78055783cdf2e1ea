"""The policy families by name, so that a checkpoint can rebuild its actor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

from o2o_lightning.nn.actor import Actor, ActorSpec
from o2o_lightning.nn.deterministic import DeterministicActor
from o2o_lightning.nn.gaussian import GaussianActor
from o2o_lightning.nn.squashed_gaussian import SquashedGaussianActor

FAMILIES: tuple[type[Actor], ...] = (DeterministicActor, GaussianActor, SquashedGaussianActor)
ACTORS: dict[str, type[Actor]] = {actor.kind: actor for actor in FAMILIES}


def fresh_actor(kind: str, observation_dim: int, action_dim: int, hidden: Sequence[int] | None = None) -> Actor:
    """A new actor of the family ``kind``, with the family's own widths unless ``hidden`` says others."""
    make = cast(Callable[..., Actor], ACTORS[kind])
    return make(observation_dim, action_dim) if hidden is None else make(observation_dim, action_dim, tuple(hidden))


def build_actor(spec: ActorSpec) -> Actor:
    """A fresh actor of the family and sizes that ``spec`` names."""
    return ACTORS[spec.kind](spec.observation_dim, spec.action_dim, spec.hidden, spec.activation, spec.mean)
