"""A policy's input of the remaining time, as TimeFeatureWrapper adds it, where environment and dataset lack it."""

from dataclasses import replace

import numpy as np
import torch

from o2o_lightning.nn.normalizer import Normalizer
from o2o_lightning.policies.source import CLONE, BadPolicy, ImportedPolicy


def column_of_time(policy: ImportedPolicy) -> int:
    """The last of the observation, or of a dictionary's part of that name."""
    if "observation" not in policy.layout or policy.layout[-1] == "observation":
        return policy.observation_dim - 1
    if not policy.widths:
        raise BadPolicy(
            f"its columns end with {policy.layout[-1]}, and the remaining time is the last of those of 'observation', "
            f"whose number it does not tell. {CLONE}"
        )
    until = policy.layout[: policy.layout.index("observation") + 1]
    return sum(policy.widths[name] for name in until) - 1


def hold_time(policy: ImportedPolicy, value: float | None) -> None:
    """Holds the input at ``value``, which then belongs to the first layer's bias; None: its mean, or 1."""
    policy.whole = replace(policy, layers=[*policy.layers])
    normalizer, (weight, bias), column = policy.normalizer, policy.layers[0], policy.time_column
    assert column is not None
    others = np.delete(np.arange(policy.observation_dim), column)
    if normalizer is not None and value is None:
        held, shown = 0.0, "its mean"
    else:
        held = 1.0 if value is None else value
        shown = f"{held:g}"
        if normalizer is not None:
            held = float(normalizer(torch.full_like(normalizer.mean, held))[column])
    policy.layers[0] = weight[:, others], bias + weight[:, column] * held
    policy.altered = f"its remaining-time input held at {shown}"
    policy.notes["time"] = (
        f"its input {column}, the remaining time, is not among the environment's observations: held at {shown}, so "
        "that actions differ from the recorded ones (--time_feature for another value)"
    )
    if normalizer is not None:
        kept = torch.from_numpy(others)
        policy.normalizer = Normalizer(normalizer.mean[kept], normalizer.std[kept], normalizer.eps, normalizer.clip)
    policy.time_column, policy.noise = None, None  # gSDE's is settled on made-up states already
