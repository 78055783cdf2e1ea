"""The policy families by name, so that a checkpoint can rebuild its policy."""

from collections.abc import Sequence
from typing import Any

from o2o_lightning.nn.actor import Actor, ActorSpec, DeterministicActor, Policy
from o2o_lightning.nn.balanced import BalancedActor
from o2o_lightning.nn.critics import Critics
from o2o_lightning.nn.decision_transformer import DecisionTransformer, OnlineDecisionTransformer, SequenceSpec
from o2o_lightning.nn.gaussian import GaussianActor, GaussianHead, ReleasedHead
from o2o_lightning.nn.mixture import Mixture
from o2o_lightning.nn.policy_set import PolicySet
from o2o_lightning.nn.squashed_gaussian import SquashedGaussianActor

FAMILIES = (DeterministicActor, GaussianActor, GaussianHead, ReleasedHead, SquashedGaussianActor)
ACTORS = {actor.kind: actor for actor in FAMILIES}
SEQUENCES = {policy.kind: policy for policy in (DecisionTransformer, OnlineDecisionTransformer)}


def fresh_actor(kind: str, observation_dim: int, action_dim: int, hidden: Sequence[int] | None = None) -> Actor:
    """A new actor of the family ``kind``, with the family's own widths unless ``hidden`` says others."""
    return ACTORS[kind](observation_dim, action_dim, hidden)


def build_actor(spec: ActorSpec) -> Actor:
    """A fresh actor of the family and sizes that ``spec`` names."""
    return ACTORS[spec.kind](spec.observation_dim, spec.action_dim, spec.hidden, spec.activation, spec.mean)


def build_policy(spec: dict[str, Any]) -> Policy:
    """A fresh policy of the family and sizes that ``spec`` names, whether it has a memory or not."""
    if spec["kind"] in (PolicySet.kind, Mixture.kind):
        members: list[Any] = [build_policy(member) for member in spec["members"]]
        return Mixture(members) if spec["kind"] == Mixture.kind else PolicySet(members, Critics(**spec["critic"]))
    if spec["kind"] == BalancedActor.kind:
        return BalancedActor(**{name: value for name, value in spec.items() if name != "kind"})
    if spec["kind"] in SEQUENCES:
        return SEQUENCES[spec["kind"]](SequenceSpec(**spec))
    return build_actor(actor_spec(spec))


def actor_spec(spec: dict[str, Any]) -> ActorSpec:
    """The specification as a checkpoint holds it, typed again."""
    return ActorSpec(**{**spec, "hidden": tuple(spec["hidden"])})
