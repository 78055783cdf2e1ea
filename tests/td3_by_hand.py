"""TD3's phases without a Trainer: random networks, random batches, one update driven by hand in float64."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from reference_td3 import Batch, Nets, gradients, plain_net
from tensordict import TensorDict
from torch import Tensor, nn

from o2o_lightning.agents.td3 import TD3Agent
from o2o_lightning.engine.noise import Noise
from o2o_lightning.nn.critics import Critics
from o2o_lightning.nn.deterministic import DeterministicActor
from o2o_lightning.nn.targets import frozen_copy
from o2o_lightning.phases import OnlineTD3
from o2o_lightning.phases.base import Loss, Phase
from o2o_lightning.phases.settings import Multiplier

S, A, B, HIDDEN = 5, 3, 32, (16, 12)
THRESHOLD = 0.02
Gradients = dict[str, Tensor]


def ready(phase: Phase, seed: int, layer_norm: bool = True) -> Phase:
    """``phase`` with a random agent in which no two networks, not even targets, are equal; at its second update."""
    torch.manual_seed(seed)
    phase.agent = TD3Agent(DeterministicActor(S, A, HIDDEN), Critics(S, A, HIDDEN, layer_norm))
    if isinstance(phase, OnlineTD3):
        phase.reference = frozen_copy(phase.agent.actor)
        phase.threshold.fill_(THRESHOLD)
    with torch.no_grad():
        for parameter in [*phase.agent.parameters(), *getattr(phase, "reference", nn.Module()).parameters()]:
            parameter.add_(torch.randn_like(parameter) * 0.15)
    phase.updates = 1
    return phase.double()


def draw(seed: int) -> Batch:
    torch.manual_seed(seed + 100)
    rows = {"s": torch.randn(B, S), "a": torch.rand(B, A) * 2 - 1, "r": torch.randn(B), "s2": torch.randn(B, S)}
    return {**{key: value.double() for key, value in rows.items()}, "d": (torch.rand(B) < 0.3).double()}


def transitions(batch: Batch, **cache: Tensor) -> TensorDict:
    successor = TensorDict({"observation": batch["s2"], "terminated": batch["d"]}, [B])
    return TensorDict(
        {"observation": batch["s"], "action": batch["a"], "reward": batch["r"], "next": successor, **cache}, [B]
    )


def cached(phase: Phase, batch: Batch) -> TensorDict:
    with torch.no_grad():
        return transitions(batch, **phase.transition_cache(transitions(batch)))


def next_noise(phase: Phase) -> Tensor:
    """The noise that the next update will draw, without drawing it."""
    ahead = Noise(0, torch.device("cpu"))
    ahead.load_state(phase.noise.state())
    return ahead.normal((B, A))


def plain(phase: Phase) -> Nets:
    agent = phase.agent
    return Nets(
        actor=plain_net(agent.actor.body.state_dict(), tanh=True),
        critic=[plain_net(member.state_dict()) for member in agent.critic.members],
        target_actor=plain_net(agent.target_actor.body.state_dict(), tanh=True),
        target_critic=[plain_net(member.state_dict()) for member in agent.target_critic.members],
        offline_actor=plain_net(agent.offline_actor.body.state_dict(), tanh=True),
        reference=plain_net(phase.reference.body.state_dict(), tanh=True) if isinstance(phase, OnlineTD3) else None,
    )


def of_actor(nets: Nets) -> Gradients:
    return {f"agent.actor.body.{name}": gradient for name, gradient in gradients(nets.actor).items()}


def of_critic(nets: Nets) -> Gradients:
    return {
        f"agent.critic.members.{i}.{name}": gradient
        for i, member in enumerate(nets.critic)
        for name, gradient in gradients(member).items()
    }


def descend(phase: Phase, loss: Loss) -> Gradients:
    """All gradients that ``loss`` makes anywhere in the phase."""
    phase.zero_grad(set_to_none=True)
    loss.value.backward()
    return {name: p.grad.clone() for name, p in phase.named_parameters() if p.grad is not None}


def step(phase: Phase, rate: float = 0.05) -> None:
    with torch.no_grad():
        for parameter in phase.parameters():
            if parameter.grad is not None:
                parameter -= rate * parameter.grad


def assert_same(found: Gradients, expected: Gradients) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        # λ is a float32 number: where a gradient cancels, its rounding is all that is left
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


def losses(phase: Phase, batch: TensorDict) -> Iterator[tuple[Loss, Gradients]]:
    """Drives one update as the base class does: each loss is descended before the next one is formed."""
    for loss in phase.update(batch):
        found = descend(phase, loss)
        step(phase)
        yield loss, found


def online(seed: int, multiplier: float = 1.7, **options: Any) -> OnlineTD3:
    phase = ready(OnlineTD3(multiplier=Multiplier(start=multiplier), **options), seed)
    phase.log_multiplier.data.fill_(math.log(multiplier))  # it was made in float32, and rounded
    assert isinstance(phase, OnlineTD3)
    return phase
