"""One update function, run as written, recorded whole, and for many seeds at once: the same numbers."""

from __future__ import annotations

import copy
import sys
from typing import Any

import every_method
import pytest
import torch
from every_method import METHODS, batches, built, noises, optimizer_of
from torch import Tensor

from o2o_lightning.engine import stacked
from o2o_lightning.engine.captured import Captured, Piece
from o2o_lightning.engine.engine import Engine
from o2o_lightning.engine.record import CannotRecord, Watch, tape
from o2o_lightning.engine.stacked import StackedEngine, joined
from o2o_lightning.engine.whole import WholeUpdates, order_of
from o2o_lightning.methods.method import Method, Moment
from o2o_lightning.nn.critics import lay_ensembles_side_by_side

K, SEEDS = 4, 3
ENSEMBLES = ("o2sac", "o2td3", "cql", "rlpd", "iql", "pa_rl", "off2on", "uni_o4")
# one environment step, and three more updates that follow it: policy delay and multiplier make the orders differ
MOMENTS = [Moment(i, env_steps=3, place=i) for i in range(K)]


def at(parts: dict[Any, Tensor], k: int) -> dict[Any, Tensor]:
    return {name: part[k] for name, part in parts.items()}


def each(parts: dict[Any, Tensor]) -> list[dict[Any, Tensor]]:
    """K batches, or the noise of K updates."""
    return [at(parts, k) for k in range(len(next(iter(parts.values()), range(K))))]


def recorded(method: Method) -> Captured:
    return Captured(whole(method), tape)


def whole(method: Method) -> WholeUpdates:
    return WholeUpdates(Engine(method), {0: (method, optimizer_of(method))})


def given_as_it_is(batches: Any) -> Any:
    return batches


def replayed(captured: Captured, given: Any, noise: Any, moments: Any = tuple(MOMENTS)) -> list[dict[str, Tensor]]:
    """The rows of updates that are one piece."""
    order = tuple(order_of(captured.updates.guide, moment) for moment in moments)
    return captured.replay(Piece(moments, order, given, noise, [True] * len(moments)), given_as_it_is)


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
    captured, optimizer = recorded(method), optimizer_of(plain)
    for _ in range(3):
        given, drawn = batches(method, K), noises(method, K)
        found = replayed(captured, each(given), drawn)
        for row, expected in zip(found, one_by_one(plain, optimizer, given, drawn), strict=True):
            assert row.keys() == expected.keys()
            assert all(torch.equal(row[key], value) for key, value in expected.items())
    assert captured.count == 1 and int(captured.made()) == 3 * K
    assert moved(plain, built(name))
    for key, value in plain.state_dict().items():
        assert torch.equal(value, method.state_dict()[key]), key


@pytest.mark.parametrize("name", METHODS)
def test_stacked_seeds_follow_their_own_runs(name: str) -> None:
    own = [built(name, seed) for seed in range(SEEDS)]
    seeds = [built(name, seed) for seed in range(SEEDS)]
    learners = {place: (method, optimizer_of(method)) for place, method in enumerate(seeds)}
    whole = WholeUpdates(StackedEngine(joined(dict(enumerate(seeds)), SEEDS), SEEDS), learners)
    captured = Captured(whole, tape)
    optimizers = [optimizer_of(method) for method in own]
    for turn in range(1, 3):
        given, drawn = batches(own[0], K, SEEDS), noises(own[0], K, SEEDS)
        noise = [{key: part[:, s] for key, part in drawn.items()} for s in range(SEEDS)]
        found = replayed(captured, each(given), noise)
        assert whole.made.tolist() == [turn * K] * SEEDS
        assert all(value.shape == (SEEDS,) for row in found for value in row.values())
        for s, (method, own_optimizer) in enumerate(zip(own, optimizers, strict=True)):
            mine = [{key: part[:, s] for key, part in parts.items()} for parts in (given, drawn)]
            for row, expected in zip(found, one_by_one(method, own_optimizer, *mine), strict=True):
                for key, value in expected.items():
                    torch.testing.assert_close(row[key][s], value, rtol=1e-5, atol=1e-6)
    for s, method in enumerate(own):
        assert moved(method, built(name, s))
        for key, value in method.state_dict().items():
            torch.testing.assert_close(seeds[s].state_dict()[key], value, rtol=1e-6, atol=1e-6, msg=key)


@pytest.mark.parametrize("name", [name for name in METHODS if any(word in name for word in ENSEMBLES)])
def test_stacked_seeds_whose_ensembles_lie_side_by_side_follow_their_own_runs(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = stacked.stacked

    def laid(methods: Any) -> Method:
        together = plain(methods)
        lay_ensembles_side_by_side(together)
        return together

    monkeypatch.setattr(stacked, "stacked", laid)  # as on a GPU
    test_stacked_seeds_follow_their_own_runs(name)


class OnAnotherDevice(Watch):
    """Refuses the same for tensors of shapes alone, which fused Adam does not know."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten._fused_adam_, torch.ops.aten._fused_adamw_):
            return self.check(func, args, kwargs)
        return super().__torch_dispatch__(func, types, args, kwargs)


@pytest.mark.parametrize("seeds", [(), (SEEDS,)], ids=["alone", "stacked"])
@pytest.mark.parametrize("name", METHODS)
def test_a_whole_update_reads_no_number_and_touches_no_tensor_of_the_host(
    name: str, seeds: tuple[int, ...], monkeypatch: Any
) -> None:
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)  # it knows no such device
    monkeypatch.setattr(sys.modules["torch.optim.adam"], "_device_dtype_check_for_fused", lambda *_, **__: None)
    meta, methods = torch.device("meta"), [built(name, seed) for seed in range(*seeds or (1,))]
    given, drawn = (
        [{key: part.to(meta) for key, part in one.items()} for one in each(parts)]
        for parts in (batches(methods[0], K, *seeds), noises(methods[0], K, *seeds))
    )
    for method in methods:
        method.to(meta)
    learners = {place: (method, optimizer_of(method)) for place, method in enumerate(methods)}
    names = [group["name"] for group in learners[0][1].param_groups]
    rates = [dict.fromkeys([*names, *methods[0].schedules(one)], torch.empty(seeds, device=meta)) for one in MOMENTS]
    engine = StackedEngine(joined(dict(enumerate(methods)), SEEDS), SEEDS) if seeds else Engine(methods[0])
    whole = WholeUpdates(engine, learners)
    with OnAnotherDevice(meta):
        for _ in range(2):
            rows = whole(MOMENTS, given, drawn, rates)
    assert {value.device for row in rows for value in row.values()} == {meta}
    assert all(value.shape == seeds for row in rows for value in row.values())


class Looking(every_method.TD3):
    """At one of its numbers, in one way or another."""

    def look(self, value: Tensor) -> Any:
        return float(value)

    def critic_step(self, batch: Any, noise: Any) -> Any:
        loss = super().critic_step(batch, noise)
        self.look(loss.metrics["q"].detach().mean())
        return loss


@pytest.mark.parametrize("look, says", [
    (lambda self, value: float(value), "_local_scalar_dense waits for a number"),
    (lambda self, value: value.expand(3)[value.expand(3) > 0.0], "an index that is a mask"),
    (lambda self, value: value.expand(3).nonzero(), "nonzero waits"),
    (lambda self, value: value + torch.tensor(1.0), "made of the host's numbers"),
    (lambda self, value: value.to("meta"), "between devices"),
])  # fmt: skip
def test_a_step_that_no_gpu_could_replay_is_refused_by_the_recording(look: Any, says: str) -> None:
    class Own(Looking):
        pass

    Own.look = look  # type: ignore[method-assign]
    method = Own(hidden=every_method.HIDDEN)
    method.build(every_method.TASK)
    before = copy.deepcopy(method.state_dict())
    with pytest.raises(CannotRecord, match=says):
        replayed(recorded(method), each(batches(method, K)), noises(method, K))
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())


def test_recording_leaves_networks_moments_and_generators_as_they_were() -> None:
    method = built("td3")
    before, optimizer = copy.deepcopy(method.state_dict()), optimizer_of(method)
    rates, stream = [group["lr"] for group in optimizer.param_groups], torch.get_rng_state()

    def record(function: Any, device: torch.device) -> Any:
        rows = function()
        torch.rand(3)
        assert moved(method, built("td3"))
        return lambda: rows  # a recording that makes nothing

    torch.set_rng_state(stream)
    whole = WholeUpdates(Engine(method), {0: (method, optimizer)})
    given, drawn = each(batches(method, K)), noises(method, K)
    stream = torch.get_rng_state()
    replayed(Captured(whole, record), given, drawn)
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())
    assert all(not value.any() for state in optimizer.state.values() for value in state.values())
    assert [group["lr"] for group in optimizer.param_groups] == rates and not whole.made
    assert torch.equal(torch.get_rng_state()[:8], stream[:8])


def test_each_order_of_steps_has_a_recording_of_its_own() -> None:
    method = built("o2td3 online")
    captured = recorded(method)
    for env_steps in range(1, 5):
        moments = [Moment(env_steps - 1, env_steps)]  # one update an environment step, every second one of the policy
        replayed(captured, each(batches(method, 1)), noises(method, 1), moments)
    assert captured.count == 2
    assert order_of(method, Moment(0, 1)) == ("critic_step",)
    assert order_of(method, Moment(1, 2)) == (
        "critic_step",
        "policy_and_multiplier_step",
        "follow 0.005",
        "follow 0.005",
    )


@pytest.mark.parametrize("load", [
    lambda method, optimizer: optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict())),
    lambda method, optimizer: method._apply(torch.clone),
])  # fmt: skip
def test_recordings_are_made_anew_when_what_they_work_on_has_moved(load: Any) -> None:
    method = built("td3_bc")
    captured = recorded(method)

    def make() -> None:
        captured.forget_if_moved()
        replayed(captured, each(batches(method, K)), noises(method, K))

    make()
    kept = next(iter(captured._recorded.values()))
    make()
    assert next(iter(captured._recorded.values())) is kept
    load(method, captured.updates.learners[0][1])
    make()
    assert next(iter(captured._recorded.values())) is not kept


def test_no_step_is_made_from_a_loss_that_is_not_finite_on() -> None:
    method = built("td3_bc")
    captured = recorded(method)
    given, drawn = batches(method, K), noises(method, K)
    replayed(captured, each(given), drawn)
    given["reward"][1] = torch.nan
    replayed(captured, each(given), drawn)
    assert int(captured.made()) == K + 1
    before = copy.deepcopy(method.critic.state_dict())
    given["reward"][1] = 0.0
    replayed(captured, each(given), drawn)
    assert int(captured.made()) == K + 1
    assert all(torch.equal(value, before[key]) for key, value in method.critic.state_dict().items())


def moved(method: Method, start: Method) -> bool:
    """Whether every network that learns has moved."""
    before = start.state_dict()
    changed = {key.partition(".")[0] for key, now in method.state_dict().items() if not torch.equal(now, before[key])}
    return changed >= {name for name in ("actor", "critic", "value") if name in method.learners()}
