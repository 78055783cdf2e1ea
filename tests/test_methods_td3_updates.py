"""What one TD3 update does in which order, what its targets are at the edges, and TorchRL as a second opinion."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from by_hand import A, losses, transitions
from reference_td3 import td3_actor_loss, td3_target
from td3_by_hand import B, assert_equal, assert_same, draw, noise_of, of_actor, online, plain
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.objectives import TD3Loss

from o2o_lightning.methods.method import Moment

SEEDS = (0, 1, 2)


def test_the_actor_climbs_the_critic_that_has_just_been_stepped() -> None:
    method, batch = online(constraint=False), draw()
    stale = plain(method)
    update = losses(method, transitions(batch), noise_of(method))
    next(update)
    stepped = plain(method)
    _, found = next(update)
    for nets in (stepped, stale):
        td3_actor_loss(nets, batch).backward()
    assert_same(found, of_actor(stepped))
    weight = "actor.body.linears.0.weight"
    assert not torch.allclose(found[weight], of_actor(stale)[weight], rtol=1e-3)


def test_targets_move_after_the_policy_step_and_only_at_every_second_update() -> None:
    method, batch = online(constraint=False), transitions(draw())
    noise, target = noise_of(method), method.target_critic.members[0].linears[0].weight
    before = target.clone()
    assert len(list(losses(method, batch, noise, Moment(0)))) == 1
    assert torch.equal(target, before)
    critic, policy = losses(method, batch, noise, Moment(1))
    assert "critic_loss" in critic[0].metrics and "actor_loss" in policy[0].metrics
    expected = 0.995 * before + 0.005 * method.critic.members[0].linears[0].weight
    torch.testing.assert_close(target.data, expected.data)


@pytest.mark.parametrize("penalty", ["state", "batch"])
def test_a_terminal_transition_has_no_penalty_in_its_target(penalty: str) -> None:
    batch = draw() | {"d": torch.ones(B, dtype=torch.float64)}
    method = online(multiplier=1e3, penalty=penalty)
    loss = method.critic_step(transitions(batch), noise_of(method))
    assert torch.equal(loss.metrics["target"], batch["r"])


@pytest.mark.parametrize("seed", SEEDS)
def test_a_policy_equal_to_its_reference_has_plain_td3s_critic_target(seed: int) -> None:
    method, batch = online(seed), draw(seed)
    method.reference_policy.load_state_dict(method.actor.state_dict())
    nets, noise = plain(method), noise_of(method, seed)
    target = method.critic_step(transitions(batch), noise).metrics["target"]
    torch.testing.assert_close(target, td3_target(nets, batch, noise["target"], 0.99), rtol=1e-10, atol=0)
    divergence = method.policy_step(transitions(batch), noise).metrics["divergence"]
    assert torch.equal(divergence, torch.zeros(B, A, dtype=torch.float64))


class StateActionValue(nn.Module):
    def __init__(self, net: nn.Sequential) -> None:
        super().__init__()
        self.net = net

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        return self.net(torch.cat([observation, action], -1))


def load(parameters: Any, nets: list[nn.Sequential]) -> None:
    """Copies ``nets`` into TorchRL's stacked parameters."""
    for (_, index, name), leaf in parameters["module"].items(include_nested=True, leaves_only=True):
        leaf.data.copy_(torch.stack([net[int(index)].get_parameter(name) for net in nets]))


@pytest.mark.filterwarnings("ignore:No target network updater")
@pytest.mark.parametrize("seed", SEEDS)
def test_without_constraint_the_critics_loss_is_torchrls(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    method, batch = online(seed, constraint=False), draw(seed)
    noise, nets = noise_of(method, seed), plain(method)
    theirs = TD3Loss(
        # without delay_actor TorchRL's target actor is its actor; only the target is needed here
        TensorDictModule(nets.target_actor, ["observation"], ["action"]),
        TensorDictModule(StateActionValue(nets.critic[0]), ["observation", "action"], ["state_action_value"]),
        bounds=(-1.0, 1.0),
        policy_noise=0.2,
        noise_clip=0.5,
        loss_function="l2",
    )
    theirs.make_value_estimator(gamma=0.99)
    load(theirs.qvalue_network_params, nets.critic)
    load(theirs.target_qvalue_network_params, nets.target_critic)
    monkeypatch.setattr(torch, "randn_like", lambda tensor: noise["target"])
    terminated = batch["d"][:, None].bool()
    successor = {
        "observation": batch["s2"],
        "reward": batch["r"][:, None],
        "terminated": terminated,
        "done": terminated,
    }
    value, facts = theirs.value_loss(
        TensorDict({"observation": batch["s"], "action": batch["a"], "next": successor}, [B])
    )
    monkeypatch.undo()
    loss = method.critic_step(transitions(batch), noise)
    assert_equal(loss.metrics["target"], facts["target_value"], atol=1e-7)
    assert_equal(loss.value, value)
