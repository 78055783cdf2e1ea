"""SAC's phases without a Trainer: random networks, random batches, one update driven by hand in float64."""

from __future__ import annotations

from typing import Any

import torch
from reference_sac import Batch, Nets, PlainActor, net_gradients, plain_net
from tensordict import TensorDict
from torch import Tensor, nn

from o2o_lightning.agents.sac import SACAgent
from o2o_lightning.nn.critics import Critics
from o2o_lightning.nn.squashed_gaussian import SquashedGaussianActor
from o2o_lightning.nn.targets import frozen_copy
from o2o_lightning.phases import OnlineSAC
from o2o_lightning.phases.base import Loss, Phase
from o2o_lightning.phases.settings import Multiplier

S, A, B, HIDDEN = 5, 3, 24, (16, 12)
THRESHOLD = 0.4
Gradients = dict[str, Tensor]


def ready(phase: Any, seed: int = 0, layer_norm: bool = True, critics: int = 2, spread: float = 0.15) -> Any:
    """``phase`` with a random agent in which no two networks, not even targets, are equal, and with ``draws``.

    ``phase.draws`` lists what its random stream gave, in order.
    """
    torch.manual_seed(seed)
    temperature = getattr(phase, "temperature", 0.3)
    phase.agent = SACAgent(SquashedGaussianActor(S, A, HIDDEN), Critics(S, A, HIDDEN, layer_norm, critics), temperature)
    if isinstance(phase, OnlineSAC):
        phase.reference = frozen_copy(phase.agent.actor)
        phase.threshold.fill_(THRESHOLD)
    networks = [phase.agent.actor, phase.agent.critic, phase.agent.target_critic, phase.agent.offline_actor]
    with torch.no_grad():
        for network in [*networks, getattr(phase, "reference", nn.Module())]:
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter) * spread)
    phase.double()
    phase.draws = []
    phase.noise.generator.manual_seed(seed)  # else whichever test ran before decides the draws
    for name in ("normal_like", "uniform"):
        setattr(phase, name, _recorded(getattr(phase, name), phase.draws))
    return phase


def _recorded(draw: Any, draws: list[Tensor]) -> Any:
    def recorded(*args: Any) -> Tensor:
        draws.append(draw(*args).double())
        return draws[-1]

    return recorded


def draw(seed: int = 0) -> Batch:
    torch.manual_seed(seed + 100)
    rows = {"s": torch.randn(B, S), "a": torch.rand(B, A) * 2 - 1, "r": torch.randn(B), "s2": torch.randn(B, S)}
    return {**{key: value.double() for key, value in rows.items()}, "d": (torch.rand(B) < 0.3).double()}


def transitions(batch: Batch, **cache: Tensor) -> TensorDict:
    size = [len(batch["r"])]
    successor = TensorDict({"observation": batch["s2"], "terminated": batch["d"]}, size)
    return TensorDict(
        {"observation": batch["s"], "action": batch["a"], "reward": batch["r"], "next": successor, **cache}, size
    )


def cached(phase: Phase, batch: Batch) -> TensorDict:
    with torch.no_grad():
        return transitions(batch, **phase.transition_cache(transitions(batch)))


def one_update(phase: Phase, batch: TensorDict) -> tuple[Loss, Gradients]:
    """The only loss of one update, and every gradient that it makes anywhere in the phase."""
    phase.zero_grad(set_to_none=True)
    steps = phase.update(batch)
    loss = next(steps)
    loss.value.backward()
    found = {name: p.grad.clone() for name, p in phase.named_parameters() if p.grad is not None}
    assert next(steps, None) is None, "one optimizer step an update"
    return loss, found


def plain(phase: Any) -> Nets:
    """The same networks for the reference implementation; make it before the update, whose end moves the targets."""
    agent = phase.agent
    return Nets(
        actor=PlainActor(agent.actor.state_dict()),
        critic=[plain_net(member.state_dict()) for member in agent.critic.members],
        target_critic=[plain_net(member.state_dict()) for member in agent.target_critic.members],
        offline_actor=PlainActor(agent.offline_actor.state_dict()),
        log_alpha=_leaf(agent.log_alpha),
        reference=PlainActor(phase.reference.state_dict()) if hasattr(phase, "reference") else None,
        log_lambda=_leaf(phase.log_multiplier) if hasattr(phase, "log_multiplier") else None,
        log_lagrange=_leaf(phase.log_lagrange) if hasattr(phase, "log_lagrange") else None,
    )


def _leaf(parameter: Tensor) -> Tensor:
    return parameter.detach().clone().requires_grad_(True)


def of_actor(nets: Nets) -> Gradients:
    return {f"agent.actor.{name}": gradient for name, gradient in nets.actor.gradients().items()}


def of_critic(nets: Nets) -> Gradients:
    return {
        f"agent.critic.members.{i}.{name}": gradient
        for i, member in enumerate(nets.critic)
        for name, gradient in net_gradients(member).items()
    }


def separately(nets: Nets, loss: Tensor, read: Any) -> Gradients:
    """The gradients of one textbook loss that its own optimizer would see."""
    for net in (nets.actor, *nets.critic):
        net.zero_grad(set_to_none=True)
    loss.backward()
    found = {name: gradient.clone() for name, gradient in read(nets).items()}
    for net in (nets.actor, *nets.critic):
        net.zero_grad(set_to_none=True)
    return found


def of_scalar(loss: Tensor, scalar: Tensor, name: str) -> Gradients:
    return {name: torch.autograd.grad(loss, scalar)[0]}


def assert_same(found: Gradients, expected: Gradients) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")


def assert_equal(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.detach(), expected.detach(), rtol=1e-5, atol=1e-11)


def online(seed: int = 0, multiplier: float = 1.7, critics: int = 2, spread: float = 0.15, **options: Any) -> OnlineSAC:
    settings = Multiplier(start=multiplier, every=options.pop("every", 1))
    return ready(OnlineSAC(multiplier=settings, **options), seed, critics=critics, spread=spread)
