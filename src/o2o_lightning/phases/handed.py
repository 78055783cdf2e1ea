"""What a phase does with an optimizer that it was handed: carried moments, limits of gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from o2o_lightning.checkpoint.handover import Handover
from o2o_lightning.engine.adam import MOMENTS, laid_out_as


def carry_moments(optimizer: torch.optim.Optimizer, source: Handover) -> None:
    """Gives each parameter that the previous phase trained as well the Adam moments that it had there."""
    for group in optimizer.param_groups:
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            moments = source.adam.get(name.removeprefix("agent."))
            if moments is not None and moments["exp_avg"].shape == parameter.shape:
                # all of it where the parameter is: Lightning would leave the step's count behind, on the CPU
                own = {key: value.to(parameter.device, copy=True) for key, value in moments.items()}
                optimizer.state[parameter] = own | {key: laid_out_as(parameter, own[key]) for key in MOMENTS}


def clip_gradients(optimizer: torch.optim.Optimizer, limits: dict[str, float], precision: Any) -> None:
    """Clips the gradient norm of each group that ``limits`` names."""
    if not limits:
        return
    scaler = getattr(precision, "scaler", None)
    scale = 1.0 if scaler is None else scaler.get_scale()  # fused Adam itself undoes the scale of 16-mixed
    for group in optimizer.param_groups:
        if group["name"] in limits:
            nn.utils.clip_grad_norm_(group["params"], limits[group["name"]] * scale)
