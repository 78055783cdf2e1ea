"""Products by oneDNN: the same layer and gradients as by torch's own, wherever they are used."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from o2o_lightning.nn import onednn as module
from o2o_lightning.nn.linear import linear
from o2o_lightning.nn.mlp import MLP
from o2o_lightning.nn.onednn import Onednn

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
SHAPES = [((256,), 128, 192), ((5, 64), 128, 128), ((256,), 256, 256)]  # of the batch, inputs, outputs


@pytest.fixture(autouse=True)
def on_any_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ONEDNN", Onednn(True, True, True))


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...]]]:
    """The shapes of what oneDNN has formed."""
    formed: list[tuple[int, ...]] = []
    plain = module._onednn_product

    def counted(*operands: Any) -> Tensor:
        out = plain(*operands)
        formed.append(tuple(out.shape))
        return out

    monkeypatch.setattr(module, "_onednn_product", counted)
    yield formed


def operands(batch: tuple[int, ...], inputs: int, outputs: int, columns: bool = False) -> list[Tensor]:
    torch.manual_seed(0)
    weight = torch.randn(inputs, outputs).t() if columns else torch.randn(outputs, inputs)
    return [t.requires_grad_() for t in (torch.randn(*batch, inputs), weight, torch.randn(outputs))]


@pytest.mark.parametrize("columns", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize(("batch", "inputs", "outputs"), SHAPES)
def test_values_and_gradients_are_those_of_double_precision(
    batch: tuple[int, ...], inputs: int, outputs: int, columns: bool, products: list[tuple[int, ...]]
) -> None:
    ours = operands(batch, inputs, outputs, columns)
    exact = [t.detach().double().requires_grad_() for t in ours]
    upstream = torch.randn(*batch, outputs)
    value, expected = linear(*ours), F.linear(*exact)
    value.backward(upstream)
    expected.backward(upstream.double())
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-3)
    for mine, theirs in zip(ours, exact, strict=True):
        assert mine.grad is not None and theirs.grad is not None
        assert mine.grad.stride() == mine.stride()
        torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=1e-5, atol=1e-3)
    assert len(products) == 3


@pytest.mark.parametrize("chosen", [Onednn(*flags) for flags in product((False, True), repeat=3)], ids=str)
def test_each_kind_of_product_is_its_library_s(
    chosen: Onednn, products: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ONEDNN", chosen)
    ours = operands((256,), 128, 192)
    exact = [t.detach().double().requires_grad_() for t in ours]
    upstream = torch.randn(256, 192)
    value = linear(*ours)
    value.backward(upstream)
    F.linear(*exact).backward(upstream.double())
    shapes = {"forward": (256, 192), "by_input": (256, 128), "by_weight": (192, 128)}
    assert products == [shape for kind, shape in shapes.items() if getattr(chosen, kind)]
    for mine, theirs in zip(ours, exact, strict=True):
        assert mine.grad is not None and theirs.grad is not None
        torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("shape", [(320, 128), (5, 64, 128), (2, 5, 32, 128)])
def test_a_network_takes_batches_of_any_shape(shape: tuple[int, ...], products: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    network, x = MLP(128, [128, 128], 1), torch.randn(shape)
    network(x).square().mean().backward()
    ours = [p.grad.clone() for p in network.parameters() if p.grad is not None]
    assert len(products) == 5  # two forward, two of weights, one of the second layer's input
    network.double().zero_grad()
    network(x.double()).square().mean().backward()
    for mine, parameter in zip(ours, network.parameters(), strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(mine.double(), parameter.grad, rtol=1e-4, atol=1e-6)


def test_what_is_constant_costs_no_product(products: list[tuple[int, ...]]) -> None:
    x, weight, bias = operands((256,), 256, 256)
    linear(x, weight.detach(), bias.detach()).sum().backward()
    assert len(products) == 2 and weight.grad is None
    products.clear()
    linear(x.detach(), weight, bias).sum().backward()
    assert len(products) == 2
    products.clear()
    with torch.no_grad():
        assert not linear(x, weight, bias).requires_grad
    assert len(products) == 1


def test_small_narrow_double_and_autocast_products_are_torch_s_own(products: list[tuple[int, ...]]) -> None:
    for case in (operands((32,), 256, 256), operands((4096,), 256, 17), operands((4096,), 17, 256)):
        assert torch.equal(linear(*case), F.linear(*case))
    x, weight, bias = operands((256,), 256, 256)
    assert linear(x.double(), weight.double(), bias.double()).dtype is torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight, bias).dtype is torch.bfloat16
    assert not products


def test_a_second_derivative_is_refused_and_never_wrong() -> None:
    x, weight, bias = operands((256,), 256, 256)
    (slope,) = torch.autograd.grad(linear(x, weight, bias).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_one_graph_when_compiled(backend: str) -> None:
    torch.manual_seed(0)
    network, x = MLP(128, [128, 128], 1, layer_norm=True), torch.randn(256, 128)
    parameters = list(network.parameters())

    def gradients() -> tuple[Tensor, ...]:
        return torch.autograd.grad(network(x).square().mean(), parameters)

    options = {"cpp_wrapper": True} if backend == "inductor" else {}  # as `phases/steps.py` has it
    torch._dynamo.reset()
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        compiled = torch.compile(gradients, fullgraph=True, dynamic=False, backend=backend, options=options)()
    for ours, theirs in zip(compiled, gradients(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_an_exported_program_holds_nothing_of_it() -> None:
    network = MLP(128, [128], 1)
    program = torch.export.export(network, (torch.randn(512, 128),))
    assert not any("product" in str(node.target) or "mkldnn" in str(node.target) for node in program.graph.nodes)


@pytest.mark.parametrize("shape", [(64, 17), (5, 64, 17), (17,)])
@pytest.mark.parametrize("shared", [False, True], ids=["own inputs", "one input"])
def test_of_many_seeds_each_has_its_own_value_and_gradients(shape: tuple[int, ...], shared: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(*((1,) if shared else (3,)), *shape, dtype=torch.float64)
    weight, bias = torch.randn(3, 9, 17, dtype=torch.float64), torch.randn(3, 9, dtype=torch.float64)
    inputs = [t.requires_grad_() for t in (x[0].detach() if shared else x, weight, bias)]
    together = torch.func.vmap(linear, in_dims=(None if shared else 0, 0, 0))(*inputs)
    given = inputs[0].expand(3, *shape) if shared else inputs[0]
    each = torch.stack([F.linear(given[i], weight[i], bias[i]) for i in range(3)])
    torch.testing.assert_close(together, each)
    upstream = torch.randn_like(each)
    ours, theirs = (torch.autograd.grad(values, inputs, upstream) for values in (together, each))
    torch.testing.assert_close(ours, theirs)


def test_of_many_seeds_a_gradient_within_each_is_its_own() -> None:
    torch.manual_seed(0)
    x, weight, bias = (torch.randn(3, *shape, dtype=torch.float64) for shape in ((8, 5), (4, 5), (4,)))

    def slope(x: Tensor, weight: Tensor, bias: Tensor, layer: Any) -> tuple[Tensor, ...]:
        loss = lambda *given: layer(*given).square().sum()  # noqa: E731
        return torch.func.grad(loss, argnums=(0, 1, 2))(x, weight, bias)  # type: ignore[no-any-return]

    ours = torch.func.vmap(lambda *given: slope(*given, linear))(x, weight, bias)
    theirs = torch.func.vmap(lambda *given: slope(*given, F.linear))(x, weight, bias)
    torch.testing.assert_close(ours, theirs)
