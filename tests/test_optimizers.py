"""Adam of many seeds at once: each seed's own steps, to the bit, and none where a seed's loss was not finite."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from o2o_lightning.nn import optimizers
from o2o_lightning.nn.optimizers import Adam, step_together

SEEDS = 3


def seeds(groups: int = 2) -> list[tuple[nn.Module, Adam]]:
    made = []
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        networks = nn.ModuleList(nn.Linear(5, 4) for _ in range(groups))
        adam = Adam(
            [{"params": [*network.parameters()], "lr": 1e-3, "name": str(i)} for i, network in enumerate(networks)]
        )
        for group in adam.param_groups:
            group["lr"] = torch.tensor(1e-3 * (1 + int(group["name"])))
        made.append((networks, adam))
    return made


def give(made: list[tuple[nn.Module, Adam]], round: int, without: int | None = None) -> None:
    """Gradients of a round; none to the group ``without``."""
    for seed, (networks, _) in enumerate(made):
        stream = torch.Generator().manual_seed(100 * round + seed)
        for i, network in enumerate(networks.children()):
            for parameter in network.parameters():
                drawn = torch.randn(parameter.shape, generator=stream)
                parameter.grad = None if i == without else drawn


def state(made: list[tuple[nn.Module, Adam]]) -> list[Tensor]:
    found = []
    for networks, adam in made:
        for parameter in networks.parameters():
            found += [parameter.detach(), *adam.state[parameter].values()]
    return [tensor.clone() for tensor in found]


@pytest.mark.parametrize("way", ["_step_in_one_call", "_step_side_by_side"])  # on a CPU, and as on a GPU
@pytest.mark.parametrize("bad", [(0, 0, 0), (0, 1, 0), (1, 1, 1)])
def test_steps_of_all_are_those_of_each(bad: tuple[int, ...], way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizers, "_step_in_one_call", getattr(optimizers, way))
    ours = seeds()
    flags = [torch.tensor(float(one)) for one in bad]
    none = [torch.tensor(0.0)] * SEEDS
    give(ours, 0)
    step_together([adam for _, adam in ours], none)  # which makes the moments, one by one
    theirs = copy.deepcopy(ours)
    for round, without in ((1, None), (2, 1), (3, None)):
        give(ours, round, without)
        step_together([adam for _, adam in ours], flags)
        give(theirs, round, without)
        for (_, adam), flag in zip(theirs, flags, strict=True):
            adam.found_inf = flag  # type: ignore[attr-defined]
            adam.step()
    assert all(map(torch.equal, state(ours), state(theirs)))


def test_counts_of_all_stay_where_they_are_until_a_seed_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizers, "_step_in_one_call", optimizers._step_side_by_side)
    ours, none = seeds(1), [torch.tensor(0.0)] * SEEDS
    adams, places = [adam for _, adam in ours], []
    for round in range(4):
        give(ours, round)
        step_together(adams, none)
        places.append([value["step"].data_ptr() for adam in adams for value in adam.state.values()])
    assert places[1] == places[2] == places[3] and len({*places[3]}) == 2 * SEEDS
    with torch.no_grad():
        for value in adams[1].state.values():
            value["step"].zero_()  # as a method forgets the moments of one seed's policy
    give(ours, 5)
    step_together([adams[1], adams[2]], none[:2])
    counts = [[float(value["step"]) for value in adam.state.values()] for adam in adams]
    assert counts == [[4.0, 4.0], [1.0, 1.0], [5.0, 5.0]]


def test_they_are_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, calls = seeds(1), []
    give(ours, 0)
    none = [torch.tensor(0.0)] * SEEDS
    step_together([adam for _, adam in ours], none)
    plain = torch._fused_adam_
    monkeypatch.setattr(
        torch, "_fused_adam_", lambda *given, **more: (calls.append(len(given[0])), plain(*given, **more))
    )
    give(ours, 1)
    step_together([adam for _, adam in ours], none)
    assert calls == [2 * SEEDS]
