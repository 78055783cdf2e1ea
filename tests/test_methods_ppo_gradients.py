"""Every gradient of IQL's and PPO's updates against losses written plainly; TorchRL as a second opinion on IQL."""

from __future__ import annotations

from typing import Any

import by_hand
import numpy as np
import pytest
import reference_ppo as plain
import torch
from by_hand import HIDDEN, A, Checkpoint, Gradients, S, losses, ready, transitions
from tensordict import TensorDict
from tensordict.nn import ProbabilisticTensorDictModule, TensorDictModule
from tensordict.nn import ProbabilisticTensorDictSequential as Policy
from torch import Tensor, nn
from torchrl.modules import IndependentNormal
from torchrl.objectives import IQLLoss

from o2o_lightning.methods.iql import IQL
from o2o_lightning.methods.method import Moment, Task
from o2o_lightning.methods.o2 import ppo
from o2o_lightning.nn.gaussian import GaussianActor
from o2o_lightning.nn.mlp import MLP

B = 48
SEEDS = (0, 1, 2)


def draw(seed: int) -> TensorDict:
    return transitions(by_hand.draw(seed, B))


def descended(method: Any, batch: TensorDict) -> list[Gradients]:
    """The gradients of each loss of one update, without stepping."""
    return [found for _, found in losses(method, batch, {}, rate=0.0)]


def copy_of(body: MLP, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    widths = [body.linears[0].in_features, *(linear.out_features for linear in body.linears)]
    weights = [(linear.weight.detach(), linear.bias.detach()) for linear in body.linears]
    return plain.plain_net(widths, weights, activation)  # type: ignore[return-value]


def assert_same_net(found: Gradients, prefix: str, net: nn.Module) -> None:
    """The gradients under ``prefix`` are those of the plain copy ``net``."""
    linears = [part for part in net.modules() if isinstance(part, nn.Linear)]
    for i, linear in enumerate(linears):
        for name in ("weight", "bias"):
            expected = getattr(linear, name).grad
            torch.testing.assert_close(found[f"{prefix}.linears.{i}.{name}"], expected, rtol=1e-9, atol=1e-12)


# ---- IQL -------------------------------------------------------------------------------------------------------------


def iql(seed: int, **options: Any) -> IQL:
    method: IQL = ready(IQL(hidden=HIDDEN, **options), seed)
    return method


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("expectile", "beta"), [(0.7, 3.0), (0.9, 10.0)])
def test_iqls_one_backward_has_the_gradients_of_its_three_losses(seed: int, expectile: float, beta: float) -> None:
    method, batch = iql(seed, expectile=expectile, inverse_temperature=beta, weight_cap=2.0), draw(seed)
    s, a, s2 = batch["observation"], batch["action"], batch["next", "observation"]
    actor, value = copy_of(method.actor.body), copy_of(method.value.body)
    critics = [copy_of(member) for member in method.critic.members]
    targets = [copy_of(member) for member in method.target_critic.members]
    log_std, x = method.actor.raw_log_std.detach().clone().requires_grad_(), torch.cat((s, a), -1)
    expected = plain.iql_losses(
        q=torch.stack([net(x).squeeze(-1) for net in critics]),
        q_target=torch.stack([net(x).squeeze(-1) for net in targets]),
        value=value(s).squeeze(-1),
        next_value=value(s2).squeeze(-1),
        reward=batch["reward"],
        terminated=batch["next", "terminated"],
        log_prob=plain.log_density(a, torch.tanh(actor(s)), log_std),
        gamma=0.99,
        expectile=expectile,
        beta=beta,
        cap=2.0,
    )
    sum(expected).backward()
    (found,) = descended(method, batch)
    assert_same_net(found, "actor.body", actor)
    assert_same_net(found, "value.body", value)
    for i, net in enumerate(critics):
        assert_same_net(found, f"critic.members.{i}", net)
    torch.testing.assert_close(found["actor.raw_log_std"], log_std.grad)
    assert {name.split(".")[0] for name in found} == {"actor", "critic", "value"}


def test_the_deterministic_variant_imitates_by_squared_distance() -> None:
    method, batch = iql(0, deterministic=True), draw(0)
    actor = copy_of(method.actor.body)
    x = torch.cat((batch["observation"], batch["action"]), -1)
    q = torch.stack([copy_of(member)(x).squeeze(-1) for member in method.target_critic.members])
    advantage = (q.amin(0) - copy_of(method.value.body)(batch["observation"]).squeeze(-1)).detach()
    weight = (3.0 * advantage).exp().clamp(max=100.0)
    (weight * (torch.tanh(actor(batch["observation"])) - batch["action"]).square().sum(-1)).mean().backward()
    (found,) = descended(method, batch)
    assert_same_net(found, "actor.body", actor)


def test_targets_move_after_the_step() -> None:
    method, batch = iql(0), draw(0)
    target = method.target_critic.members[0].linears[0].weight
    before, update = target.clone(), losses(method, batch, {})
    next(update)
    assert torch.equal(target, before)
    assert next(update, None) is None
    online = method.critic.members[0].linears[0].weight.detach()
    torch.testing.assert_close(target, 0.995 * before + 0.005 * online)


class Head(nn.Module):
    """A plain Gaussian policy for TorchRL: tanh mean, one deviation."""

    def __init__(self, body: nn.Module, log_std: Tensor) -> None:
        super().__init__()
        self.body, self.log_std = body, nn.Parameter(log_std)

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        mean = torch.tanh(self.body(observation))
        return mean, self.log_std.exp().expand_as(mean)


@pytest.mark.filterwarnings("ignore:No target network updater")
def test_torchrls_iql_agrees() -> None:
    method, batch = iql(0), draw(0)
    method.target_critic.load_state_dict(method.critic.state_dict())  # TorchRL's targets begin as copies
    metrics = {name: value.detach() for name, value in method.step(batch, {}).metrics.items()}
    policy = Head(copy_of(method.actor.body), method.actor.raw_log_std.detach())
    head = TensorDictModule(policy, ["observation"], ["loc", "scale"])
    plainly = {"distribution_class": IndependentNormal, "distribution_kwargs": {"tanh_loc": False}}
    sampler = ProbabilisticTensorDictModule(["loc", "scale"], ["action"], **plainly)
    critics = [StateActionValue(copy_of(member)) for member in method.critic.members]
    qvalue = TensorDictModule(critics[0], ["observation", "action"], ["state_action_value"])
    value = TensorDictModule(copy_of(method.value.body), ["observation"], ["state_value"])
    loss = IQLLoss(
        Policy(head, sampler), qvalue, value_network=value, num_qvalue_nets=2, loss_function="l2", temperature=3.0,
        expectile=0.7,
    ).double()  # fmt: skip
    loss.make_value_estimator(gamma=0.99)
    for params in (loss.qvalue_network_params, loss.target_qvalue_network_params):
        for key, leaf in params.items(include_nested=True, leaves_only=True):
            name = ".".join(key[1:])
            leaf.data.copy_(torch.stack([critic.get_parameter(name) for critic in critics]))
    td = batch.clone()
    td["next", "reward"] = td["reward"].unsqueeze(-1)
    td["next", "terminated"] = td["next", "terminated"].unsqueeze(-1).bool()
    td["next", "done"] = td["next", "terminated"].clone()
    out = loss(td)
    torch.testing.assert_close(metrics["value_loss"], out["loss_value"].squeeze())
    torch.testing.assert_close(2 * metrics["critic_loss"], out["loss_qvalue"], rtol=1e-6, atol=0)  # no ½ there
    torch.testing.assert_close(metrics["actor_loss"], out["loss_actor"])


class StateActionValue(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        return self.net(torch.cat([observation, action], -1))


# ---- PPO -------------------------------------------------------------------------------------------------------------


def online(seed: int, **options: Any) -> ppo.Online:
    method: ppo.Online = ready(ppo.Online(hidden=HIDDEN, value_hidden=HIDDEN, **options), seed)
    return method


def collected(seed: int) -> TensorDict:
    batch = draw(seed)
    batch["next", "truncated"] = torch.rand(B) < 0.1
    return batch.unsqueeze(0)


def off_policy(rows: TensorDict) -> TensorDict:
    """The same rows with old log-probabilities that some ratios exceed."""
    torch.manual_seed(7)
    return rows.clone().update({"log_prob": rows["log_prob"] + 0.3 * torch.randn(B).double()})


@pytest.mark.parametrize("seed", SEEDS)
def test_ppos_two_losses_have_the_gradients_of_plain_ones(seed: int) -> None:
    method = online(seed)
    rows = off_policy(method.begin_rollout(collected(seed), 0))
    of_actor, of_value = descended(method, rows)
    actor, value = copy_of(method.actor.body), copy_of(method.value.body, nn.Tanh)
    log_std = method.actor.raw_log_std.detach().clone().requires_grad_()
    mean = torch.tanh(actor(rows["observation"]))
    surrogate = plain.surrogate(
        plain.log_density(rows["action"], mean, log_std), rows["log_prob"], rows["advantage"], 0.2
    )
    (surrogate - 0.01 * torch.distributions.Normal(mean[0], log_std.exp()).entropy().sum()).backward()
    assert_same_net(of_actor, "actor.body", actor)
    torch.testing.assert_close(of_actor["actor.raw_log_std"], log_std.grad)
    assert {name.split(".")[0] for name in of_actor} == {"actor"}
    (value(rows["observation"]).squeeze(-1) - rows["value_target"]).square().mean().backward()
    assert_same_net(of_value, "value.body", value)
    assert {name.split(".")[0] for name in of_value} == {"value"}


@pytest.mark.parametrize("auxiliary", [True, False])
def test_the_advantage_of_a_rollout_is_the_estimate_plus_the_weighted_auxiliary_term(auxiliary: bool) -> None:
    method, batch = online(0, auxiliary_advantage=auxiliary, auxiliary=ppo.Auxiliary(env_steps=1000)), collected(0)
    rows, flat = method.begin_rollout(batch, env_steps=400), batch[0]  # β = 0.6
    value = method.value(flat["observation"]).detach()
    following = method.value(flat["next", "observation"]).detach()
    ended = flat["next", "terminated"].bool() | flat["next", "truncated"]
    estimate = torch.tensor(
        plain.gae(
            value.tolist(), following.tolist(), flat["reward"].tolist(), flat["next", "terminated"].tolist(),
            ended.tolist(), 0.99, 0.95,
        )
    ).double()  # fmt: skip
    expected = estimate
    if auxiliary:
        mean = method.reference_policy.mode(flat["observation"]).detach()
        std = method.reference_policy.raw_log_std.detach().exp()
        expected = estimate + 0.6 * 2.0 * estimate.std() * plain.auxiliary(flat["action"], mean, std, joint=False)
    expected = (expected - expected.mean()) / (expected.std() + 1e-5)
    torch.testing.assert_close(rows["advantage"], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(rows["value_target"], estimate + value, rtol=1e-5, atol=1e-5)


def test_the_ratio_is_one_before_the_first_step() -> None:
    method = online(0)
    rows = method.begin_rollout(collected(0), 0)
    ratio = (method.actor.log_prob(rows["observation"], rows["action"]) - rows["log_prob"]).exp()
    torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=1e-12, atol=0)


def test_pairwise_advantages_leave_the_first_gradient_as_plain_ppos() -> None:
    def first(**options: Any) -> Tensor:
        method = online(0, entropy=0.0, **options)
        found, _ = descended(method, method.begin_rollout(collected(0), 0))
        return torch.cat([gradient.flatten() for gradient in found.values()])

    cosine = torch.nn.functional.cosine_similarity
    direct = first(auxiliary_advantage=False)
    # the auxiliary terms' common shift moves the matrix' mean only, which the normalisation takes out
    assert float(cosine(first(auxiliary=ppo.Auxiliary(pairwise=True)), direct, dim=0)) == pytest.approx(1.0, abs=1e-9)
    assert float(cosine(first(), direct, dim=0)) < 0.99


def test_actor_and_value_are_clipped_each_on_its_own() -> None:
    assert ppo.Online().gradient_limits() == {"actor": 0.5, "value": 0.5}


def test_rates_fall_by_the_steps_before_the_rollout() -> None:
    method = ppo.Online(actor_lr=3e-5, value_lr=2e-4)
    method.build(Task(S, A, total=250_000, rollout=2048))
    assert method.rates(Moment(0, env_steps=2048)) == {"actor": 3e-5, "value": 2e-4}
    assert method.rates(Moment(64, env_steps=3 * 2048))["actor"] == pytest.approx(3e-5 * (1 - 4096 / 250_000))


def test_the_fit_of_v_descends_the_squared_error_to_the_return() -> None:
    method, batch = ready(ppo.Reevaluate(hidden=HIDDEN), 0, Checkpoint(lambda: GaussianActor(S, A, HIDDEN))), draw(0)
    batch["return_to_go"] = torch.randn(B).double()
    (found,) = descended(method, batch)
    value = copy_of(method.value.body, nn.Tanh)
    (value(batch["observation"]).squeeze(-1) - batch["return_to_go"]).square().mean().backward()
    assert_same_net(found, "value.body", value)
    assert {name.split(".")[0] for name in found} == {"value"}


def test_clipped_actions_have_the_unclipped_normals_density_and_numpy_acts_as_torch() -> None:
    torch.manual_seed(0)
    actor = GaussianActor(S, A, HIDDEN)
    observation = torch.randn(4000, S)
    action = torch.from_numpy(actor.explore(observation.numpy(), np.random.default_rng(0)))
    assert float(action.abs().max()) == 1.0 and float((action.abs() == 1.0).float().mean()) > 0.2  # σ is 1 at first
    mean, log_std = actor(observation)
    torch.testing.assert_close(actor.log_prob(observation, action), plain.log_density(action, mean, log_std))
    torch.testing.assert_close(torch.from_numpy(actor.act(observation.numpy())), mean.detach(), rtol=1e-5, atol=1e-6)
    interior = action[:, 0].abs() < 1.0
    z = (action - mean)[interior, 0].detach()
    assert float(z.abs().max()) < 2.0  # the mean is inside ±1 as well


def test_the_deviation_is_capped_once_and_may_rise_again() -> None:
    actor = GaussianActor(S, A, HIDDEN)
    actor.raw_log_std.data.copy_(torch.tensor([0.0, -5.0, -1.0]))
    actor.cap_std(0.05)
    assert actor.log_std().exp().tolist() == pytest.approx([0.05, 0.006737947, 0.05])
    actor.raw_log_std.data.add_(1.0)
    assert float(actor.log_std().detach().exp()[0]) == pytest.approx(0.05 * 2.718281828)
