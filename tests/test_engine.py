"""One update function, run as written, recorded whole, and for many seeds at once: the same numbers."""

from __future__ import annotations

import copy
from typing import Any

import every_method
import pytest
import torch
from every_method import METHODS, batches, built, noises, optimizer_of
from torch import Tensor

from o2o_lightning.engine.engine import Engine
from o2o_lightning.engine.stacked import StackedEngine, stacked
from o2o_lightning.engine.whole import Captured, WholeUpdates, order_of, static_graph
from o2o_lightning.methods.method import Method, Moment
from o2o_lightning.nn.optimizers import LAMB

K, SEEDS = 4, 3
# one environment step, and three more updates that follow it: policy delay and multiplier make the orders differ
MOMENTS = [Moment(i, env_steps=3, place=i) for i in range(K)]


def at(parts: dict[Any, Tensor], k: int) -> dict[Any, Tensor]:
    return {name: part[k] for name, part in parts.items()}


def one_by_one(method: Method, optimizer: torch.optim.Optimizer, given: Any, drawn: Any) -> list[dict[str, Tensor]]:
    """K updates as a phase makes them: backward passes, clipping, the optimizer's steps."""
    engine, rows = Engine(method), []
    limits = method.gradient_limits()
    for k, moment in enumerate(MOMENTS):
        rates, metrics = method.rates(moment), {}
        for group in optimizer.param_groups:
            group["lr"] = rates.get(group["name"], group["lr"])
        for name, value in method.schedules(moment).items():
            method.get_buffer(name).fill_(value)
        for loss in engine.losses(moment, at(given, k), at(drawn, k)):
            optimizer.zero_grad(set_to_none=True)
            loss.value.backward()
            for group in optimizer.param_groups:
                if group["name"] in limits:
                    torch.nn.utils.clip_grad_norm_(group["params"], limits[group["name"]])
            optimizer.step()
            metrics |= {name: value.detach().float().mean() for name, value in loss.metrics.items()}
        rows.append(metrics)
    return rows


@pytest.mark.parametrize("name", METHODS)
def test_four_updates_recorded_as_one_graph_and_replayed_equal_the_same_updates_made_one_by_one(name: str) -> None:
    method, plain = built(name), built(name)
    captured = Captured(WholeUpdates(Engine(method), optimizer_of(method)), static_graph)
    optimizer = optimizer_of(plain)
    for _ in range(3):
        given, drawn = batches(method, K), noises(method, K)
        metrics, finite = captured(MOMENTS, given, drawn)
        rows = one_by_one(plain, optimizer, given, drawn)
        assert bool(finite.all())
        for k, row in enumerate(rows):
            assert {key for key, value in metrics.items() if not value[k].isnan()} == {*row}
            assert all(torch.equal(metrics[key][k], value) for key, value in row.items())
    assert captured.graphs == 1
    assert moved(plain, built(name))
    for key, value in plain.state_dict().items():
        assert torch.equal(value, method.state_dict()[key]), key


@pytest.mark.parametrize("name", METHODS)
def test_stacked_seeds_follow_their_own_runs(name: str) -> None:
    own = [built(name, seed) for seed in range(SEEDS)]
    together = stacked(own)
    optimizer = optimizer_of(together)
    if isinstance(optimizer, LAMB):
        optimizer.stacked = True
    engine = StackedEngine(together, SEEDS)
    whole = Captured(WholeUpdates(engine, optimizer), lambda function, inputs, state: function)
    optimizers = [optimizer_of(method) for method in own]
    for _ in range(2):
        given, drawn = batches(own[0], K, SEEDS), noises(own[0], K, SEEDS)
        metrics, finite = whole(MOMENTS, given, drawn)
        assert bool(finite.all()) and all(value.shape == (K, SEEDS) for value in metrics.values())
        for s, (method, each) in enumerate(zip(own, optimizers, strict=True)):
            mine = [{key: part[:, s] for key, part in parts.items()} for parts in (given, drawn)]
            for k, row in enumerate(one_by_one(method, each, *mine)):
                for key, value in row.items():
                    torch.testing.assert_close(metrics[key][k, s], value, rtol=1e-5, atol=1e-6)
    for s, method in enumerate(own):
        assert moved(method, built(name, s))
        for key, value in method.state_dict().items():
            torch.testing.assert_close(together.state_dict()[key][s], value, rtol=1e-6, atol=1e-6, msg=key)


def test_a_step_that_looks_at_a_number_is_refused_by_the_recording() -> None:
    class Looking(every_method.TD3):
        def critic_step(self, batch: Any, noise: Any) -> Any:
            loss = super().critic_step(batch, noise)
            assert float(loss.value.detach()) >= 0.0
            return loss

    method = Looking(hidden=every_method.HIDDEN)
    method.build(every_method.TASK)
    captured = Captured(WholeUpdates(Engine(method), optimizer_of(method)), static_graph)
    with pytest.raises(RuntimeError, match="trac"):
        captured(MOMENTS, batches(method, K), noises(method, K))


def test_recording_leaves_networks_and_moments_as_they_were() -> None:
    method = built("td3")
    before, optimizer = copy.deepcopy(method.state_dict()), optimizer_of(method)

    def record(function: Any, inputs: list[Tensor], state: list[Tensor]) -> Any:
        outputs = function(*inputs)
        assert moved(method, built("td3"))
        return lambda *leaves: outputs  # a graph that makes nothing

    Captured(WholeUpdates(Engine(method), optimizer), record)(MOMENTS, batches(method, K), noises(method, K))
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())
    assert all(not value.any() for state in optimizer.state.values() for value in state.values())


def test_each_order_of_steps_has_a_graph_of_its_own() -> None:
    method = built("o2td3 online")
    captured = Captured(WholeUpdates(Engine(method), optimizer_of(method)), static_graph)
    for env_steps in range(1, 5):
        moments = [Moment(env_steps - 1, env_steps)]  # one update an environment step, every second one of the policy
        captured(moments, batches(method, 1), noises(method, 1))
    assert captured.graphs == 2
    assert order_of(method, Moment(0, 1)) == ("critic_step",)
    assert order_of(method, Moment(1, 2)) == (
        "critic_step",
        "policy_and_multiplier_step",
        "follow 0.005",
        "follow 0.005",
    )


def test_no_step_is_made_from_a_loss_that_is_not_finite_on() -> None:
    method = built("td3_bc")
    captured = Captured(WholeUpdates(Engine(method), optimizer_of(method)), static_graph)
    given, drawn = batches(method, K), noises(method, K)
    captured(MOMENTS, given, drawn)
    before = copy.deepcopy(method.critic.state_dict())
    given["reward"][0] = torch.nan
    _, finite = captured(MOMENTS, given, drawn)
    assert not finite.any()
    assert all(torch.equal(value, before[key]) for key, value in method.critic.state_dict().items())


def moved(method: Method, start: Method) -> bool:
    """Whether every network that learns has moved."""
    before = start.state_dict()
    changed = {key.partition(".")[0] for key, now in method.state_dict().items() if not torch.equal(now, before[key])}
    return changed >= {name for name in ("actor", "critic", "value") if name in method.learners()}
