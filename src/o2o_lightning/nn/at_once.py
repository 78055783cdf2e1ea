"""Layers of many networks at once, in batched products: of stacked seeds, of an ensemble's members, or of both.

``N`` stands for the networks: one leading dimension or two. A GPU makes a layer of all of them in a launch or two. One
after the other they would be as many launches, each too small to fill it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from o2o_lightning.nn import onednn

EPSILON = 1e-5  # of torch's LayerNorm


def linear_of_all(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``x Wᵀ + b`` of each: ``[N…, B, I], [N…, O, I], [N…, O] → [N…, B, O]``."""
    return _Products.apply(x, weight, bias)  # type: ignore[no-any-return,no-untyped-call]


def layer_norm_of_all(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """LayerNorm of each: ``[N…, B, O], [N…, O], [N…, O] → [N…, B, O]``."""
    return _Norms.apply(x, scale, shift)[0]  # type: ignore[no-any-return,no-untyped-call]


def as_one(parts: Sequence[Tensor]) -> Tensor:
    """``[N, …]`` of tensors of one shape: without a copy where they lie side by side. Gradients are its parts."""
    return _AsOne.apply(*parts)  # type: ignore[no-any-return,no-untyped-call]


def lay_side_by_side(networks: Sequence[nn.Module]) -> None:
    """Moves the parameters of networks of one shape into one memory each."""
    places: dict[int, Tensor] = {}
    for same in zip(*(network.parameters() for network in networks), strict=True):
        if not _lie_side_by_side(same):
            places |= zip(map(id, same), laid_side_by_side(same).unbind(), strict=True)
    for network in networks:
        network._apply(lambda tensor: places.get(id(tensor), tensor))  # type: ignore[no-untyped-call]


def laid_side_by_side(parts: Sequence[Tensor]) -> Tensor:
    """A copy ``[N, …]`` of tensors of one shape, each in the memory layout of the first."""
    first = parts[0].detach()
    joint = first.new_empty_strided((len(parts), *first.shape), (first.numel(), *first.stride()))
    return torch.stack([part.detach() for part in parts], out=joint)


def _lie_side_by_side(parts: Sequence[Tensor]) -> bool:
    first = parts[0]
    memory, size, start = first.untyped_storage().data_ptr(), first.numel(), first.storage_offset()
    return all(
        part.untyped_storage().data_ptr() == memory
        and part.storage_offset() == start + i * size
        and part.stride() == first.stride()
        for i, part in enumerate(parts)
    )


def _all_seeds(info: Any, dims: Sequence[int | None], own: Sequence[int], tensors: Sequence[Tensor]) -> list[Tensor]:
    """What stands behind tensors of stacked seeds: the seeds come last before the dimensions of each one's ``own``.

    A rule for each operation of a layer would have them first, and so copy what lies side by side in another order.
    """
    return [
        tensor.unsqueeze(-size - 1).expand(*tensor.shape[:-size], info.batch_size, *tensor.shape[-size:])
        if dim is None
        else tensor.movedim(dim, -size - 1)
        for tensor, dim, size in zip(tensors, dims, own, strict=True)
    ]


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        by_onednn = _suits(x, weight) and onednn.ONEDNN.forward
        found = _times(_flat(x), _flat(weight).transpose(1, 2), by_onednn, bias.reshape(-1, bias.shape[-1]))
        return found if x.dim() == 3 else found.view(*x.shape[:-1], -1)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        gradient, large = _flat(gradient), _suits(x, weight)
        by_x = _times(gradient, _flat(weight), large and onednn.ONEDNN.by_input).view(x.shape) if of_x else None
        by_weight = None
        if of_weight and weight.stride(-1) == 1:
            found = _times(gradient.transpose(1, 2), _flat(x), large and onednn.ONEDNN.by_weight)
            by_weight = found.view(weight.shape)
        elif of_weight:  # laid out in memory as the weight is: fused Adam pairs them by place
            found = _times(_flat(x).transpose(1, 2), gradient, large and onednn.ONEDNN.by_weight)
            by_weight = found.transpose(1, 2).view(weight.shape)
        return by_x, by_weight, gradient.sum(1).view(weight.shape[:-1]) if of_bias else None

    @staticmethod
    def vmap(info: Any, dims: Any, *tensors: Tensor) -> tuple[Tensor, int]:
        found = linear_of_all(*_all_seeds(info, dims, (2, 2, 1), tensors))
        return found, found.dim() - 3


class _Norms(torch.autograd.Function):
    """Once differentiable."""

    @staticmethod
    def forward(x: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, ...]:
        plain, mean, inverse = torch.native_layer_norm(x, x.shape[-1:], None, None, EPSILON)
        return torch.addcmul(shift.unsqueeze(-2), plain, scale.unsqueeze(-2)), plain, mean, inverse

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)  # of these, which none asks for
        ctx.save_for_backward(*inputs[:2], *output[1:])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, scale, plain, mean, inverse = ctx.saved_tensors
        of_x, of_scale, of_shift = ctx.needs_input_grad
        by_x = None
        if of_x:
            wanted, of_plain = [True, False, False], gradient * scale.unsqueeze(-2)
            saved = of_plain, x, x.shape[-1:], mean, inverse, None, None
            by_x = torch.ops.aten.native_layer_norm_backward(*saved, wanted)[0]
        by_scale = (gradient * plain).sum(-2) if of_scale else None
        return by_x, by_scale, gradient.sum(-2) if of_shift else None

    @staticmethod
    def vmap(info: Any, dims: Any, *tensors: Tensor) -> tuple[tuple[Tensor, ...], int]:
        found = _Norms.apply(*_all_seeds(info, dims, (2, 1, 1), tensors))  # type: ignore[no-untyped-call]
        return found, found[0].dim() - 3


class _AsOne(torch.autograd.Function):
    @staticmethod
    def forward(*parts: Tensor) -> Tensor:
        if not _lie_side_by_side(parts):
            return torch.stack(parts)
        first = parts[0].detach()
        return first.as_strided((len(parts), *first.shape), (first.numel(), *first.stride()))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return gradient.unbind()

    @staticmethod
    def vmap(info: Any, dims: Any, *parts: Tensor) -> tuple[Tensor, int]:
        own = [part.dim() - (dim is not None) for part, dim in zip(parts, dims, strict=True)]
        return as_one(_all_seeds(info, dims, own, parts)), 1


def _flat(tensor: Tensor) -> Tensor:
    """``[N…, B, I] → [N, B, I]``."""
    return tensor if tensor.dim() == 3 else tensor.reshape(-1, *tensor.shape[-2:])


def _suits(x: Tensor, weight: Tensor) -> bool:
    return onednn.suits(x.shape[-2] * weight.shape[-2] * weight.shape[-1], x, weight)


def _times(a: Tensor, b: Tensor, by_onednn: bool, bias: Tensor | None = None) -> Tensor:
    """``a b + bias`` of each: ``[N, B, I], [N, I, O], [N, O] → [N, B, O]``."""
    if not by_onednn:
        return torch.bmm(a, b) if bias is None else torch.baddbmm(bias.unsqueeze(1), a, b)
    found = a.new_empty(*a.shape[:2], b.shape[2])
    for i, own in enumerate(found.unbind()):  # copied while it is in the cache
        own.copy_(onednn.product(a[i], b[i].t(), None if bias is None else bias[i]))
    return found
