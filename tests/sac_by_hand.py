"""SAC's methods without a Trainer, and copies of their networks for the plain implementation."""

from __future__ import annotations

import math
from typing import Any

import by_hand
import torch
from by_hand import HIDDEN, A, Checkpoint, Gradients, S, losses
from reference_sac import Batch, Nets, PlainActor, net_gradients, plain_net
from tensordict import TensorDict
from torch import Tensor

from o2o_lightning.methods.method import Loss, Noise
from o2o_lightning.methods.o2 import sac
from o2o_lightning.methods.o2.constraint import Multiplier
from o2o_lightning.nn.critics import Critics
from o2o_lightning.nn.squashed_gaussian import SquashedGaussianActor

B, THRESHOLD = 24, 0.4


def ready(method: Any, seed: int = 0, layer_norm: bool = True, critics: int = 2, spread: float = 0.15) -> Any:
    """``method``, from a checkpoint of this shape."""
    critic = lambda: Critics(S, A, HIDDEN, layer_norm, critics)  # noqa: E731
    return by_hand.ready(method, seed, Checkpoint(lambda: SquashedGaussianActor(S, A, HIDDEN), critic), spread)


def online(
    seed: int = 0, multiplier: float = 1.7, critics: int = 2, spread: float = 0.15, **options: Any
) -> sac.Online:
    made = sac.Online(multiplier=Multiplier(start=multiplier, every=1), **options)
    method: sac.Online = ready(made, seed, critics=critics, spread=spread)
    # they were made in float32, and rounded
    method.log_multiplier.data.fill_(math.log(multiplier))
    method.threshold_now.fill_(THRESHOLD)
    return method


def draw(seed: int = 0) -> Batch:
    return by_hand.draw(seed, B)


def noise_of(method: Any, seed: int = 0) -> Noise:
    return by_hand.noise_of(method, (B, A), seed)


def one_update(method: Any, batch: TensorDict, noise: Noise) -> tuple[Loss, Gradients]:
    """The only loss of one update, and every gradient that it makes anywhere in the method."""
    (found,) = losses(method, batch, noise)
    return found


def plain(method: Any, noise: Noise) -> Nets:
    """The same networks for the plain implementation; make it before the update, which moves them."""
    return Nets(
        actor=PlainActor(method.actor.state_dict()),
        critic=[plain_net(member.state_dict()) for member in method.critic.members],
        target_critic=[plain_net(member.state_dict()) for member in method.target_critic.members],
        offline_actor=PlainActor(method.offline_actor.state_dict()),
        log_alpha=_leaf(method.log_alpha),
        reference=PlainActor(method.reference_policy.state_dict()) if hasattr(method, "reference_policy") else None,
        log_lambda=_leaf(method.log_multiplier) if hasattr(method, "log_multiplier") else None,
        log_lagrange=_leaf(method.log_lagrange) if hasattr(method, "log_lagrange") else None,
        noise=dict(noise),
    )


def _leaf(parameter: Tensor) -> Tensor:
    return parameter.detach().clone().requires_grad_(True)


def of_actor(nets: Nets) -> Gradients:
    return {f"actor.{name}": gradient for name, gradient in nets.actor.gradients().items()}


def of_critic(nets: Nets) -> Gradients:
    return {
        f"critic.members.{i}.{name}": gradient
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
