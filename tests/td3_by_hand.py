"""TD3's methods without a Trainer, and copies of their networks for the plain implementation."""

from __future__ import annotations

import math
from typing import Any

import by_hand
import torch
from by_hand import HIDDEN, A, Checkpoint, Gradients, S
from reference_td3 import Batch, Nets, gradients, plain_net
from torch import Tensor

from o2o_lightning.methods.method import Noise
from o2o_lightning.methods.o2 import td3
from o2o_lightning.methods.o2.constraint import Multiplier
from o2o_lightning.nn.actor import DeterministicActor
from o2o_lightning.nn.critics import Critics

B, THRESHOLD = 32, 0.02


def ready(method: Any, seed: int = 0, layer_norm: bool = True) -> Any:
    """``method``, from a checkpoint of this shape."""
    source = Checkpoint(lambda: DeterministicActor(S, A, HIDDEN), lambda: Critics(S, A, HIDDEN, layer_norm))
    return by_hand.ready(method, seed, source, 0.15)


def online(seed: int = 0, multiplier: float = 1.7, every: int | None = None, **options: Any) -> td3.Online:
    method: td3.Online = ready(td3.Online(multiplier=Multiplier(start=multiplier, every=every), **options), seed)
    # they were made in float32, and rounded
    method.log_multiplier.data.fill_(math.log(multiplier))
    method.threshold_now.fill_(THRESHOLD)
    return method


def draw(seed: int = 0) -> Batch:
    return by_hand.draw(seed, B)


def noise_of(method: Any, seed: int = 0) -> Noise:
    return by_hand.noise_of(method, (B, A), seed)


def plain(method: Any) -> Nets:
    """The same networks for the plain implementation; make it before the update, which moves them."""
    actors = {
        name: plain_net(getattr(method, name).body.state_dict(), tanh=True) if hasattr(method, name) else None
        for name in ("actor", "target_actor", "offline_actor", "reference_policy")
    }
    return Nets(
        actor=actors["actor"],
        critic=[plain_net(member.state_dict()) for member in method.critic.members],
        target_actor=actors["target_actor"],
        target_critic=[plain_net(member.state_dict()) for member in method.target_critic.members],
        offline_actor=actors["offline_actor"],
        reference=actors["reference_policy"],
    )


def of_actor(nets: Nets) -> Gradients:
    return {f"actor.body.{name}": gradient for name, gradient in gradients(nets.actor).items()}


def of_critic(nets: Nets) -> Gradients:
    return {
        f"critic.members.{i}.{name}": gradient
        for i, member in enumerate(nets.critic)
        for name, gradient in gradients(member).items()
    }


def assert_same(found: Gradients, expected: Gradients) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        # λ is a float32 number: where a gradient cancels, its rounding is all that is left
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


def assert_equal(found: Tensor, expected: Tensor, atol: float = 0.0) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=atol)
