"""LAMB (You et al. 2020, https://arxiv.org/abs/1904.00962, Algorithm 2), which neither torch nor TorchRL has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor


class LAMB(torch.optim.Optimizer):
    r"""Adam whose step on each parameter is scaled to the parameter's own norm.

    :math:`u = \hat m / (\sqrt{\hat v} + \epsilon) + w\,\theta`, then :math:`\theta \leftarrow \theta - \eta\,
    \frac{\|\theta\|}{\|u\|}\,u`; the ratio is 1 where either norm is 0. A group whose ``weight_decay`` is 0 takes
    Adam's plain step, as in NVIDIA's LAMB: a scalar's norm says nothing of its scale.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    stacked = False  # whether parameters are those of several seeds, ``[S, …]``

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step on every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                self._guarded_step(group, parameters)
        return loss

    def _guarded_step(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        """The step, undone where ``found_inf`` says that the loss was not finite: fused Adam skips it by that flag."""
        found_inf = getattr(self, "found_inf", None)
        if found_inf is None:
            self._step(group, parameters)
            return
        moved = [*parameters, *(value for parameter in parameters for value in self._state(parameter).values())]
        before = [value.clone() for value in moved]
        self._step(group, parameters)
        for value, old in zip(moved, before, strict=True):
            value.copy_(torch.where(found_inf.bool(), old, value))

    def _state(self, parameter: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        return state

    def _step(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        states = [self._state(parameter) for parameter in parameters]
        for state in states:
            state["step"] += 1
        (beta1, beta2), step = group["betas"], states[0]["step"].double()
        first, second = [state["exp_avg"] for state in states], [state["exp_avg_sq"] for state in states]
        torch._foreach_lerp_(first, gradients, 1.0 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, 1.0 - beta2)
        root = torch._foreach_sqrt(torch._foreach_div(second, 1.0 - beta2**step))
        torch._foreach_add_(root, group["eps"])
        update = torch._foreach_div(torch._foreach_div(first, 1.0 - beta1**step), root)
        if group["weight_decay"]:
            torch._foreach_add_(update, parameters, alpha=group["weight_decay"])
            norms, lengths = self._norms(parameters), self._norms(update)
            for part, norm, length in zip(update, norms, lengths, strict=True):
                part.mul_(torch.where((norm > 0) & (length > 0), norm / length, torch.ones_like(norm)))
        torch._foreach_mul_(update, group["lr"])  # which may be a tensor
        torch._foreach_sub_(parameters, update)

    def _norms(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The norm of each, or of each seed's part of it."""
        if not self.stacked:
            return list(torch._foreach_norm(list(tensors)))
        return [t.flatten(1).norm(dim=1).view(-1, *[1] * (t.dim() - 1)) if t.dim() > 1 else t.abs() for t in tensors]
