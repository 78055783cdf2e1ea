"""CrossQ's batch renormalisation (https://arxiv.org/abs/1702.03275), acting by constants: a part of layers."""

import re

import torch
from torch import Tensor

from o2o_lightning.policies.source import CLONE, BadPolicy
from o2o_lightning.policies.tensors import State

TRUNK = "actor.latent_pi"


def folded(state: State, eps: float) -> State:
    r"""``state`` as a plain perceptron's, numbered as one.

    A layer that takes :math:`\gamma (x - \mu) / \sqrt{v + \epsilon} + \beta` takes x, its weights multiplied by
    :math:`\gamma / \sqrt{v + \epsilon}`, the rest in its bias. In float64.
    """
    places = sorted({int(match[1]) for name in state if (match := re.match(rf"{re.escape(TRUNK)}\.(\d+)\.", name))})
    plain = {name: tensor for name, tensor in state.items() if not name.startswith(TRUNK)}
    before: tuple[Tensor, Tensor] | None = None
    for count, place in enumerate(place for place in places if f"{TRUNK}.{place}.weight" in state):
        before = _constants(state, f"{TRUNK}.{place - 1}", eps)
        plain |= _taken(state, f"{TRUNK}.{place}", f"{TRUNK}.{2 * count}", before)
    if places and (before := _constants(state, f"{TRUNK}.{places[-1]}", eps)) is not None:
        if "actor.log_std.weight" not in state:
            raise BadPolicy(f"it is CrossQ's with gSDE, whose noise of renormalised features is not imported. {CLONE}")
        for head in ("actor.mu", "actor.log_std"):
            plain |= _taken(state, head, head, before)
    return plain


def _constants(state: State, name: str, eps: float) -> tuple[Tensor, Tensor] | None:
    """Factor and shift of the renormalisation ``name``; None where it is something else."""
    parts = [state.get(f"{name}.{part}") for part in ("scale", "bias", "ra_mean", "ra_var")]
    if any(part is None for part in parts):
        return None
    scale, bias, mean, variance = (part.double() for part in parts if part is not None)
    factor = scale / torch.sqrt(variance + eps)
    return factor, bias - mean * factor


def _taken(state: State, name: str, called: str, before: tuple[Tensor, Tensor] | None) -> State:
    weight, bias = (state[f"{name}.{part}"].double() for part in ("weight", "bias"))
    if before is not None:
        factor, shift = before
        if factor.shape != weight.shape[1:]:
            raise BadPolicy(f"'{name}' takes {weight.shape[1:]} values of {tuple(factor.shape)}. The file is mixed up.")
        weight, bias = weight * factor, bias + weight @ shift
    return {f"{called}.weight": weight, f"{called}.bias": bias}
