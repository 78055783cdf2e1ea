"""The policy families by name, so that a checkpoint can rebuild its actor."""

from __future__ import annotations

from o2o_lightning.nn.actor import Actor, ActorSpec
from o2o_lightning.nn.deterministic import DeterministicActor
from o2o_lightning.nn.gaussian import GaussianActor
from o2o_lightning.nn.squashed_gaussian import SquashedGaussianActor

FAMILIES: tuple[type[Actor], ...] = (DeterministicActor, GaussianActor, SquashedGaussianActor)
ACTORS: dict[str, type[Actor]] = {actor.kind: actor for actor in FAMILIES}


def build_actor(spec: ActorSpec) -> Actor:
    """A fresh actor of the family and sizes that ``spec`` names."""
    return ACTORS[spec.kind](spec.observation_dim, spec.action_dim, spec.hidden)
