"""Gradients of the rivals' losses against the same formulas written out, whichever network they reach.

Those of RLPD, Off2On, PA-RL and Uni-O4 are in their own files, those of CQL, IQL and AWAC in that of the sources.
"""

from __future__ import annotations

from typing import Any

import torch
from by_hand import HIDDEN, A, draw, noise_of, ready, transitions
from every_method import TASK, Networks, built
from test_methods_pins import DETERMINISTIC, GAUSSIAN
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.nn.functional import softplus

from o2o_lightning.methods import aca, rebrac
from o2o_lightning.methods.pex import PEX
from o2o_lightning.methods.proto import PROTO, PROTOTD3
from o2o_lightning.methods.spot import SPOT
from o2o_lightning.methods.wsrl import WSRL

B = 24


def shaken(method: Any) -> Any:
    """No two of its networks are equal any more, and all are in float64."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return method.double()


def squashed(actor: Any, s: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """An action and its log-density, by the change of variables."""
    mean, log_std = actor(s)
    u = mean + log_std.exp() * noise
    return torch.tanh(u), density(actor, s, u)


def density(actor: Any, s: Tensor, u: Tensor) -> Tensor:
    """Of tanh(u)."""
    mean, log_std = actor(s)
    return (Normal(mean, log_std.exp()).log_prob(u) - torch.log(1 - torch.tanh(u) ** 2)).sum(-1)


def smoothed(action: Tensor, noise: Tensor) -> Tensor:
    return (action + (0.2 * noise).clamp(-0.5, 0.5)).clamp(-1, 1)


def assert_descends(method: Any, loss: Tensor, *expected: tuple[Tensor, list[Any]]) -> None:
    """Each learner's gradient is that of the one formula that is its own, and nothing else has any."""
    own: dict[int, Tensor | None] = {id(p): None for p in method.parameters()}
    for formula, parts in expected:
        parameters = [p for part in parts for p in ([part] if isinstance(part, Tensor) else part.parameters())]
        own |= dict(zip(map(id, parameters), torch.autograd.grad(formula, parameters, allow_unused=True), strict=True))
    learning = [(name, p) for name, p in method.named_parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, [p for _, p in learning], allow_unused=True)
    assert any(gradient is not None for gradient in found)
    for (name, parameter), gradient in zip(learning, found, strict=True):
        wanted = own[id(parameter)]
        wanted = torch.zeros_like(parameter) if wanted is None else wanted
        torch.testing.assert_close(
            torch.zeros_like(parameter) if gradient is None else gradient,
            wanted,
            rtol=1e-6,
            atol=1e-8,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def test_acas_are_those_of_sac_with_the_log_density_in_q() -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden": HIDDEN, "critic_hidden": HIDDEN}
    before = aca.Offline(**sizes)
    before.build(TASK)
    method: Any = aca.ACA(**sizes, bound_width=1.5)
    method.build(TASK, Networks("offline", before))
    method, rows = shaken(method), draw(0, B)
    method.weight_now.fill_(0.7)
    noise, alpha = noise_of(method, (B, A)), method.log_alpha.exp().detach()

    def values(critic: Any, s: Tensor, a: Tensor) -> Tensor:
        base = method.offline_actor
        floor = (-0.5 * 1.5**2 - base(s)[1] - 0.5 * torch.log(torch.tensor(2 * torch.pi))).sum(-1)
        return critic(s, a) + 0.7 * (softplus(density(base, s, torch.atanh(a)) - floor) + floor)

    a2, log_prob2 = squashed(method.actor, rows["s2"], noise["target"])
    y = rows["r"] + 0.99 * (1 - rows["d"]) * (values(method.target_critic, rows["s2"], a2).amin(0) - alpha * log_prob2)
    critic_loss = (values(method.critic, rows["s"], rows["a"]) - y.detach()).square().mean()
    assert_descends(method, method.critic_step(transitions(rows), noise).value, (critic_loss, [method.critic]))
    a, log_prob = squashed(method.actor, rows["s"], noise["policy"])
    actor_loss = (alpha * log_prob - values(method.critic, rows["s"], a).amin(0)).mean()
    temperature_loss = -method.log_alpha * (log_prob.detach().mean() - A)
    found = method.policy_step(transitions(rows), noise).value
    assert_descends(method, found, (actor_loss, [method.actor]), (temperature_loss, [method.log_alpha]))


def test_pexs_are_those_of_iql_and_a_likelihood_of_the_composite_action() -> None:
    torch.manual_seed(1)
    method: Any = PEX(hidden=HIDDEN, inverse_temperature=2.0)
    method.build(TASK, Networks("offline", built("iql")))
    method, rows = shaken(method), draw(0, B)
    noise, s, s2 = noise_of(method, (B, A)), rows["s"], rows["s2"]
    base, learner = method.actor.members
    lead = method.target_critic(s, rows["a"]).detach().amin(0) - method.value(s)
    value_loss = (torch.where(lead < 0, 0.1, 0.9) * lead.square()).mean()
    y = (rows["r"] + 0.99 * (1 - rows["d"]) * method.value(s2)).detach()
    critic_loss = 0.5 * (method.critic(s, rows["a"]) - y).square().mean(-1).sum()
    with torch.no_grad():
        mean, log_std = learner(s)
        options = base(s)[0].clamp(-1, 1), (mean + log_std.exp() * noise["policy"]).clamp(-1, 1)
        theirs, ours = (method.critic(s, option).amin(0) for option in options)
        chosen = (noise["choice"] + 1) / 2 < torch.exp(10 * ours) / (torch.exp(10 * ours) + torch.exp(10 * theirs))
        a = torch.where(chosen[:, None], options[1], options[0])
        weight = torch.exp(2.0 * (method.target_critic(s, a).amin(0) - method.value(s))).clamp(max=100.0)
    assert 0 < int(chosen.sum()) < B
    mean, log_std = learner(s)
    actor_loss = -(weight * Normal(mean, log_std.exp()).log_prob(a).sum(-1)).mean()
    batch = transitions(rows)
    assert_descends(method, method.value_step(batch, noise).value, (value_loss, [method.value]))
    assert_descends(method, method.critic_step(batch, noise).value, (critic_loss, [method.critic]))
    assert_descends(method, method.policy_step(batch, noise).value, (actor_loss, [learner]))


def test_protos_pay_for_the_log_ratio_in_the_target_and_in_the_policys_loss() -> None:
    method, rows = ready(PROTO(strength=2.0), source=GAUSSIAN), draw(0, B)
    noise, alpha = noise_of(method, (B, A)), method.log_alpha.exp().detach()

    def cost(s: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        action, log_prob = squashed(method.actor, s, noise)
        return action, log_prob, alpha * log_prob + 2.0 * (log_prob - density(method.anchor, s, torch.atanh(action)))

    a2, _, price = cost(rows["s2"], noise["target"])
    y = rows["r"] + 0.99 * (1 - rows["d"]) * (method.target_critic(rows["s2"], a2).amin(0) - price)
    critic_loss = (method.critic(rows["s"], rows["a"]) - y.detach()).square().mean()
    assert_descends(method, method.critic_step(transitions(rows), noise).value, (critic_loss, [method.critic]))
    a, log_prob, price = cost(rows["s"], noise["policy"])
    actor_loss = (price - method.critic(rows["s"], a).mean(0)).mean()
    temperature_loss = -method.log_alpha * (log_prob.detach().mean() - A / 2)
    found = method.policy_step(transitions(rows), noise).value
    assert_descends(method, found, (actor_loss, [method.actor]), (temperature_loss, [method.log_alpha]))


def test_protos_with_td3_pay_for_the_distance() -> None:
    method, rows = ready(PROTOTD3(strength=2.0), source=DETERMINISTIC), draw(0, B)
    noise, anchor = noise_of(method, (B, A)), method.target_actor
    apart = (smoothed(method.actor(rows["s2"]), noise["target"]) - anchor(rows["s2"])).square().mean()
    value = method.target_critic(rows["s2"], anchor(rows["s2"])).amin(0) - 2.0 * apart
    y = (rows["r"] + 0.99 * (1 - rows["d"]) * value).detach()
    critic_loss = (method.critic(rows["s"], rows["a"]) - y).square().mean(-1).sum()
    assert_descends(method, method.critic_step(transitions(rows), noise).value, (critic_loss, [method.critic]))
    a = method.actor(rows["s"])
    q = method.critic(rows["s"], a)[0]
    actor_loss = -2.5 * q.mean() / q.detach().abs().mean() + 2.0 * (a - anchor(rows["s"])).square().mean()
    assert_descends(method, method.policy_step(transitions(rows), noise).value, (actor_loss, [method.actor]))


def test_rebracs_pay_for_leaving_the_datas_actions() -> None:
    method, rows = ready(rebrac.Offline(hidden=HIDDEN, policy_penalty=0.4, critic_penalty=0.3)), draw(0, B)
    noise, following = noise_of(method, (B, A)), torch.rand(B, A).double() * 2 - 1
    cut = (torch.arange(B) % 3 == 0).double()
    batch = transitions(rows, next_action=following)
    batch["next", "truncated"] = cut
    a2 = smoothed(method.target_actor(rows["s2"]), noise["target"])
    value = method.target_critic(rows["s2"], a2).amin(0) - 0.3 * (1 - cut) * (a2 - following).square().sum(-1)
    y = (rows["r"] + 0.99 * (1 - rows["d"]) * value).detach()
    critic_loss = (method.critic(rows["s"], rows["a"]) - y).square().mean(-1).sum()
    assert_descends(method, method.critic_step(batch, noise).value, (critic_loss, [method.critic]))
    a = method.actor(rows["s"])
    q = method.critic(rows["s"], a).amin(0)
    actor_loss = -q.mean() / q.detach().abs().mean() + 0.4 * (a - rows["a"]).square().sum(-1).mean()
    assert_descends(method, method.policy_step(batch, noise).value, (actor_loss, [method.actor]))


def test_spots_pay_the_negative_evidence_bound() -> None:
    method, rows = ready(SPOT(hidden=HIDDEN, vae_hidden=HIDDEN, vae_updates=1, pin=0.4)), draw(0, B)
    method.pin_now.fill_(0.3)
    noise, vae = noise_of(method, (B, A)), method.vae

    def misfit(a: Tensor) -> Tensor:
        mean, log_std = vae.encoder(torch.cat((rows["s"], a), -1)).chunk(2, -1)
        posterior = Normal(mean, log_std.clamp(-4, 15).exp())
        decoded = vae.decoder(torch.cat((rows["s"], mean + posterior.stddev * noise["latent"]), -1)).tanh()
        prior = Normal(torch.zeros_like(mean), torch.ones_like(mean))
        return (decoded - a).square().mean() + 0.5 * kl_divergence(posterior, prior).mean()

    assert_descends(method, method.vae_step(transitions(rows), noise).value, (misfit(rows["a"]), [vae]))
    a = method.actor(rows["s"])
    q = method.critic(rows["s"], a)[0]
    actor_loss = -q.mean() / q.detach().abs().mean() + 0.3 * misfit(a)
    assert_descends(method, method.policy_step(transitions(rows), noise).value, (actor_loss, [method.actor]))


def test_wsrls_climb_the_least_critic_and_have_no_entropy_in_the_target() -> None:
    method, rows = ready(WSRL(hidden=HIDDEN, critic_hidden=HIDDEN, critics=4)), draw(0, B)
    noise = noise_of(method, (B, A))
    noise["subset"] = torch.tensor([0.1, -0.9]).double()  # the third and the first
    a2, _ = squashed(method.actor, rows["s2"], noise["target"])
    q2 = method.target_critic(rows["s2"], a2)
    y = (rows["r"] + 0.99 * (1 - rows["d"]) * torch.minimum(q2[2], q2[0])).detach()
    critic_loss = (method.critic(rows["s"], rows["a"]) - y).square().mean()
    assert_descends(method, method.critic_step(transitions(rows), noise).value, (critic_loss, [method.critic]))
    a, log_prob = squashed(method.actor, rows["s"], noise["policy"])
    actor_loss = (method.log_alpha.exp().detach() * log_prob - method.critic(rows["s"], a).amin(0)).mean()
    temperature_loss = -method.log_alpha * (log_prob.detach().mean() - A)
    found = method.policy_step(transitions(rows), noise).value
    assert_descends(method, found, (actor_loss, [method.actor]), (temperature_loss, [method.log_alpha]))
