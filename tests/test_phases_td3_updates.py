"""What one TD3 update does in which order, what its targets are at the edges, and TorchRL as a second opinion."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from reference_td3 import td3_actor_loss, td3_target
from td3_by_hand import A, B, assert_same, descend, draw, losses, next_noise, of_actor, online, plain, step, transitions
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.objectives import TD3Loss

SEEDS = (0, 1, 2)


def test_the_actor_climbs_the_critic_that_has_just_been_stepped() -> None:
    phase, batch = online(0, constraint=False), draw(0)
    stale = plain(phase)
    update = phase.update(transitions(batch))
    descend(phase, next(update))
    step(phase)
    stepped = plain(phase)
    found = descend(phase, next(update))
    for nets in (stepped, stale):
        td3_actor_loss(nets, batch).backward()
    assert_same(found, of_actor(stepped))
    weight = "agent.actor.body.linears.0.weight"
    assert not torch.allclose(found[weight], of_actor(stale)[weight], rtol=1e-3)


def test_targets_move_after_the_policy_step_and_only_at_every_second_update() -> None:
    phase, batch = online(0, constraint=False), transitions(draw(0))
    phase.updates = 0
    before = phase.agent.target_critic.members[0].linears[0].weight.clone()
    assert len(list(losses(phase, batch))) == 1
    assert torch.equal(phase.agent.target_critic.members[0].linears[0].weight, before)
    phase.updates = 1
    assert len(list(losses(phase, batch))) == 2
    expected = 0.995 * before + 0.005 * phase.agent.critic.members[0].linears[0].weight
    torch.testing.assert_close(phase.agent.target_critic.members[0].linears[0].weight.data, expected.data)


@pytest.mark.parametrize("penalty", ["state", "batch"])
def test_a_terminal_transition_has_no_penalty_in_its_target(penalty: str) -> None:
    batch = draw(0) | {"d": torch.ones(B, dtype=torch.float64)}
    phase = online(0, multiplier=1e3, penalty=penalty)
    loss = next(phase.update(transitions(batch)))
    assert torch.equal(loss.metrics["target"], batch["r"])


@pytest.mark.parametrize("seed", SEEDS)
def test_a_policy_equal_to_its_reference_has_plain_td3s_critic_target(seed: int) -> None:
    phase, batch = online(seed), draw(seed)
    phase.reference.load_state_dict(phase.agent.actor.state_dict())
    nets, noise = plain(phase), next_noise(phase)
    update = phase.update(transitions(batch))
    critic = next(update)
    torch.testing.assert_close(critic.metrics["target"], td3_target(nets, batch, noise, 0.99), rtol=1e-10, atol=0)
    assert torch.equal(next(update).metrics["divergence"], torch.zeros(B, A, dtype=torch.float64))


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
    phase, batch = online(seed, constraint=False), draw(seed)
    noise, nets = next_noise(phase), plain(phase)
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
    monkeypatch.setattr(torch, "randn_like", lambda tensor: noise)
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
    loss = next(phase.update(transitions(batch)))
    torch.testing.assert_close(loss.metrics["target"], facts["target_value"], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(loss.value, value, rtol=1e-5, atol=0)
