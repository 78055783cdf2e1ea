"""Perceptrons found in a state dict by the names and shapes of its tensors."""

import io
import pickle
import re
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from o2o_lightning.policies.source import CLONE, Array, BadPolicy, Linear, packed, readable, unzip

State = dict[str, Tensor]
MOST_TENSORS = 1000
D3RLPY = "it is d3rlpy's, without its scalers. Save `algo.save_policy('p.onnx')` and import that."
_TENSORS = re.compile(r"(^|/)data/\d+$")


def load_tensors(content: bytes) -> Any:
    """What ``torch.save`` wrote, tensors and plain values only; nothing in it is executed."""
    with readable("it cannot be read", "It may be cut off; copy it again."):
        members = unzip(content) if content[:2] == b"PK" else {"": content}
        if any(b"bytearray" in part for name, part in members.items() if not _TENSORS.search(name)):
            raise BadPolicy("it holds byte arrays beside tensors. Save the policy's `state_dict()` and import that.")
        try:
            file = packed(members) if content[:2] == b"PK" else io.BytesIO(content)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of pickles that are then refused
                return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            if b"_encoder._layers." in content:
                raise BadPolicy(D3RLPY) from error
            raise BadPolicy(
                "it holds something other than tensors and plain values, so it was not read, and nothing "
                "of it ran. Save its `state_dict()` and import that."
            ) from error


def sequence(state: State, prefix: str) -> list[Linear]:
    """The linear layers ``PREFIX.0.weight``, ``PREFIX.2.weight``, … in order; none of them may be missing."""
    pattern = re.compile(rf"{re.escape(prefix)}\.(\d+)\.weight$")
    places = sorted(int(match[1]) for key in state if (match := pattern.match(key)))
    step = places[1] if len(places) > 1 else 1
    if places != [*range(0, step * len(places), step)]:
        raise BadPolicy(f"of its layers '{prefix}.N' only {places} are there, so one is missing. Pass another file.")
    return [linear(state, f"{prefix}.{place}") for place in places]


def linear(state: State, name: str) -> Linear:
    """Weight and bias of one layer; a bias that is not there is zero."""
    weight = numbers(state, f"{name}.weight")
    bias = numbers(state, f"{name}.bias") if f"{name}.bias" in state else np.zeros(weight.shape[:1])
    if weight.ndim != 2 or bias.ndim != 1:
        raise BadPolicy(f"'{name}' has a weight {weight.shape} and a bias {bias.shape}, no linear layer. {CLONE}")
    return weight, bias


def numbers(state: State, name: str) -> Array:
    """Float64, so that a comparison is as exact as the source."""
    tensor = state[name]
    if tensor.layout != torch.strided or not tensor.is_floating_point():
        raise BadPolicy(
            f"'{name}' is {tensor.dtype}, {tensor.layout}, and dense floating-point numbers are needed. "
            "Save it as such."
        )
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise BadPolicy(f"'{name}' declares {tuple(tensor.shape)} and holds less. Save a `contiguous()` copy.")
    return tensor.detach().double().numpy()


def halves(layer: Linear) -> tuple[Linear, Linear]:
    """The mean's and log σ's half of a layer that gives both."""
    weight, bias = layer
    half = len(weight) // 2
    return (weight[:half], bias[:half]), (weight[half:], bias[half:])


def tensors_of(found: Any) -> State:
    """``found`` as a flat mapping of names to tensors, other entries left out."""
    entries = found if isinstance(found, dict) else {}
    state = {str(key): value for key, value in entries.items() if isinstance(value, Tensor)}
    if not state:
        raise BadPolicy("it holds no tensors by name. Save the policy's `state_dict()` and import that.")
    if len(state) > MOST_TENSORS:
        raise BadPolicy(f"it holds {len(state):,} tensors, more than a perceptron's. Pass another file.")
    return state
