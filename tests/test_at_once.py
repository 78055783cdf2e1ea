"""Layers of many networks at once: what each network makes of its input alone, and gradients where they belong."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_captured import Counted
from torch import Tensor

from o2o_lightning.nn import onednn
from o2o_lightning.nn.at_once import as_one, lay_side_by_side, layer_norm_of_all, linear_of_all
from o2o_lightning.nn.critics import Critics, lay_ensembles_side_by_side
from o2o_lightning.nn.mlp import MLP, outputs_of_all

SIZES = st.integers(1, 5)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def with_gradients(function: Any, *tensors: Tensor) -> list[Tensor]:
    """What it makes of them, and the gradients of a sum that weighs each number of that in another way."""
    own = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    found = function(*own)
    weights = torch.arange(found.numel(), dtype=found.dtype).cos().view(found.shape)
    return [found.detach(), *torch.autograd.grad((found * weights).sum(), own)]


@settings(max_examples=40, deadline=None)
@given(SIZES, SIZES, SIZES, SIZES, st.integers(0, 2**31), st.booleans())
def test_a_layer_of_all_is_that_of_each(n: int, b: int, i: int, o: int, seed: int, by_columns: bool) -> None:
    draw = torch.Generator().manual_seed(seed)
    x, weight, bias = (torch.randn(s, generator=draw, dtype=torch.float64) for s in ((n, b, i), (n, o, i), (n, o)))
    if by_columns:
        weight = weight.transpose(1, 2).contiguous().transpose(1, 2)
    scale, shift = torch.randn(2, n, o, generator=draw, dtype=torch.float64)

    def layer(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return layer_norm_of_all(linear_of_all(x, weight, bias), scale, shift)

    def one_by_one(*parts: Tensor) -> Tensor:
        each = zip(*(part.unbind() for part in parts), strict=True)
        return torch.stack([F.layer_norm(F.linear(x, w, c), (o,), s, t) for x, w, c, s, t in each])

    inputs = (x, weight, bias, scale, shift)
    for found, expected in zip(with_gradients(layer, *inputs), with_gradients(one_by_one, *inputs), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("by_columns", [False, True])
def test_a_weights_gradient_lies_in_memory_as_the_weight(by_columns: bool) -> None:
    weight = torch.randn(2, 5, 3)
    if by_columns:
        weight = weight.transpose(1, 2).contiguous().transpose(1, 2)
    weight.requires_grad_()
    linear_of_all(torch.randn(2, 4, 3), weight, torch.zeros(2, 5)).sum().backward()
    assert weight.grad is not None and weight.grad.stride() == weight.stride()


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
@pytest.mark.parametrize("by_columns", [False, True])
@pytest.mark.parametrize(
    "chosen", [(True, True, True), (True, False, False), (False, True, False), (False, False, True)]
)
def test_large_products_are_onednns_where_that_is_quicker(
    chosen: tuple[bool, bool, bool], by_columns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, plain = [], onednn._onednn_product
    monkeypatch.setattr(onednn, "ONEDNN", onednn.Onednn(*chosen))
    monkeypatch.setattr(onednn, "_onednn_product", lambda *given: made.append(given) or plain(*given))
    x, weight, bias = torch.randn(3, 256, 128), torch.randn(3, 128, 128), torch.randn(3, 128)
    if by_columns:
        weight = weight.transpose(1, 2).contiguous().transpose(1, 2)
    exact = with_gradients(linear_of_all, *(part.double() for part in (x, weight, bias)))
    assert not made  # of another precision
    for found, expected in zip(with_gradients(linear_of_all, x, weight, bias), exact, strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-3)
    assert len(made) == 3 * sum(chosen)
    linear_of_all(x[:, :100], weight, bias)
    assert len(made) == 3 * sum(chosen)  # a small one


@pytest.mark.parametrize("seeds_at", [0, 1])
def test_stacked_seeds_have_what_each_has(seeds_at: int) -> None:
    """Of networks [N, …] that are stacked before or after them, as members of ensembles are."""
    seeds, n = 3, 2
    x, weight, bias = torch.randn(seeds, 4, 3), torch.randn(seeds, n, 5, 3), torch.randn(seeds, n, 5)
    scale, shift = torch.randn(2, seeds, n, 5)

    def one(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return layer_norm_of_all(linear_of_all(x.expand(n, -1, -1), weight, bias), scale, shift)

    own = (weight, bias, scale, shift)
    moved = [part.movedim(0, seeds_at) for part in own]
    found = torch.vmap(one, in_dims=(0, *[seeds_at] * 4))(x, *moved)
    expected = torch.stack([one(*parts) for parts in zip(*(part.unbind() for part in (x, *own)), strict=True)])
    torch.testing.assert_close(found, expected)


def test_what_lies_side_by_side_is_one_without_a_copy_and_gradients_are_its_parts() -> None:
    nets = [MLP(3, (4,), 2, layer_norm=True) for _ in range(3)]
    before = [copy.deepcopy(net.state_dict()) for net in nets]
    nets[0](torch.randn(2, 3), frozen=True)  # lists its constants
    lay_side_by_side(nets)
    for net, state in zip(nets, before, strict=True):
        assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    for same in zip(*(net.parameters() for net in nets), strict=True):
        one = as_one(same)
        assert one.data_ptr() == same[0].data_ptr() and one.shape == (3, *same[0].shape)
        assert torch.equal(one, torch.stack(same))
        gradients = torch.autograd.grad((one * torch.arange(3.0).view(3, *[1] * same[0].dim())).sum(), same)
        assert all(torch.equal(own, torch.full_like(own, float(k))) for k, own in enumerate(gradients))
    kept = [parameter.data_ptr() for net in nets for parameter in net.parameters()]
    lay_side_by_side(nets)  # they do already
    assert [parameter.data_ptr() for net in nets for parameter in net.parameters()] == kept


def test_tensors_that_lie_elsewhere_are_copied() -> None:
    parts = [torch.randn(3, requires_grad=True) for _ in range(2)]
    one = as_one(parts)
    assert torch.equal(one, torch.stack(parts))
    (one * torch.tensor([[2.0], [3.0]])).sum().backward()
    assert parts[1].grad is not None and parts[1].grad.tolist() == [3.0] * 3


def ensemble(layer_norm: bool = True, support: Any = None) -> Critics:
    critics = Critics(5, 2, (16, 16), layer_norm, 3, support).double()
    with torch.no_grad():
        for parameter in critics.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return critics


@pytest.mark.parametrize("lead", [(7,), (4, 7)])
@pytest.mark.parametrize("layer_norm, support", [(True, None), (False, None), (True, (-1.0, 1.0, 5))])
def test_an_ensemble_side_by_side_has_the_values_and_gradients_of_one_after_the_other(
    layer_norm: bool, support: Any, lead: tuple[int, ...]
) -> None:
    critics = ensemble(layer_norm, support)
    twin = copy.deepcopy(critics)
    critics.lay_side_by_side()
    observation, action = torch.randn(*lead, 5).double(), torch.randn(*lead, 2).double()
    for frozen in (False, True):
        gradients = []
        for one in (critics, twin):
            own = action.clone().requires_grad_()
            values = one(observation, own, frozen)
            assert values.shape == (3, *lead)
            values.square().sum().backward()
            gradients.append([values, own.grad, *(p.grad for p in one.parameters() if p.grad is not None)])
            one.zero_grad()
        assert len(gradients[0]) == len(gradients[1]) == (2 if frozen else 2 + len(list(critics.parameters())))
        for found, expected in zip(*gradients, strict=True):
            close(found, expected)
    close(critics.first(observation, action), twin.first(observation, action))


def test_an_ensemble_side_by_side_follows_its_members_wherever_they_go() -> None:
    critics, x = ensemble(), (torch.randn(7, 5).double(), torch.randn(7, 2).double())
    critics(*x, frozen=True)
    critics.lay_side_by_side()
    with torch.no_grad():
        for parameter in critics.parameters():
            parameter.mul_(1.1)
    close(critics(*x), torch.stack([member(torch.cat(x, -1)).squeeze(-1) for member in critics.members]))
    close(critics(*x, frozen=True), critics(*x))
    own = copy.deepcopy(critics)
    with torch.no_grad():
        own.members[1].linears[0].weight.zero_()
    assert not torch.equal(own(*x), critics(*x))
    close(own(*x)[0], critics(*x)[0])
    loaded = ensemble()
    loaded.lay_side_by_side()
    loaded.load_state_dict(critics.state_dict())
    close(loaded(*x), critics(*x))
    single = loaded.float()
    torch.testing.assert_close(single(*(part.float() for part in x)).double(), critics(*x), rtol=1e-4, atol=1e-4)


def test_side_by_side_a_layer_is_one_product_forward_and_two_back_however_many_members_there_are() -> None:
    critics = Critics(5, 2, (16, 16), True, 10)
    lay_ensembles_side_by_side(torch.nn.ModuleList([critics]))
    with Counted() as counted:
        critics(torch.randn(7, 5), torch.randn(7, 2)).sum().backward()
    assert counted.counts["baddbmm"] == 3 and counted.counts["bmm"] == 5  # none by the input of the first
    assert counted.counts["native_layer_norm"] == counted.counts["native_layer_norm_backward"] == 2
    assert not {"stack", "clone", "mm", "addmm", "copy_", "zeros"} & counted.counts.keys()


def test_networks_of_one_input_are_passed_through_at_once() -> None:
    nets = [MLP(3, (8, 8), 2, activation="tanh").double() for _ in range(4)]
    x = torch.randn(6, 3).double()
    close(outputs_of_all(nets, x), torch.stack([net(x) for net in nets]))
