"""Adam with less to do between its kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

MOMENTS = ("exp_avg", "exp_avg_sq")


def laid_out_as(parameter: Tensor, moment: Tensor) -> Tensor:
    """``moment`` in the memory layout of its parameter: the fused kernel pairs them by their place in memory."""
    return moment if moment.stride() == parameter.stride() else torch.empty_like(parameter).copy_(moment)


class Adam(torch.optim.Adam):
    """torch's fused Adam, bit for bit, that lists its tensors once.

    With networks of this size, looking up each parameter's state anew takes as long as the arithmetic.
    """

    def __init__(self, groups: list[dict[str, Any]], eps: float = 1e-8) -> None:
        super().__init__(groups, eps=eps, fused=True)
        self._lists: dict[int, tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]] = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._lists = {}  # other tensors now
        for parameter, moments in self.state.items():
            for name in MOMENTS:
                moments[name] = laid_out_as(parameter, moments[name])

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        result = None if closure is None else closure()
        gradients = [[p.grad for p in group["params"]] for group in self.param_groups]
        if self._is_plain(gradients):
            for i, group in enumerate(self.param_groups):
                if gradients[i][0] is not None:
                    self._step_group(i, group, gradients[i])
        else:
            super().step()
        return result

    # as torch marks a step that it has wrapped in hooks and a profiler's range, which cost a third of the arithmetic
    step.hooked = True  # type: ignore[attr-defined]

    def zero_grad(self, set_to_none: bool = True) -> None:
        if not set_to_none:
            super().zero_grad(set_to_none)
            return
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def _is_plain(self, gradients: list[list[Tensor | None]]) -> bool:
        """Whether each group has all its gradients and moments, or no gradient."""
        for i, (group, found) in enumerate(zip(self.param_groups, gradients, strict=True)):
            missing = sum(gradient is None for gradient in found)
            if missing not in (0, len(found)):
                return False
            if not missing and i not in self._lists and not all(p in self.state for p in group["params"]):
                return False
        return True

    @torch.no_grad()
    def _step_group(self, i: int, group: dict[str, Any], gradients: list[Tensor]) -> None:
        if i not in self._lists:
            states = [self.state[p] for p in group["params"]]
            counts = torch.stack([state["step"] for state in states])  # views of one tensor, counted up in one addition
            for state, count in zip(states, counts.unbind(), strict=True):
                state["step"] = count
            lists = [[state[key] for state in states] for key in (*MOMENTS, "step")]
            self._lists[i] = (counts, lists[0], lists[1], lists[2])
        counts, means, squares, steps = self._lists[i]
        # as a GradScaler sets them: what all gradients were multiplied by, and whether the step is not to be made
        scale, found_inf = (getattr(self, name, None) for name in ("grad_scale", "found_inf"))
        counts.add_(1)
        torch._fused_adam_(
            group["params"], gradients, means, squares, [], steps,
            lr=group["lr"], beta1=group["betas"][0], beta2=group["betas"][1], eps=group["eps"],
            weight_decay=group["weight_decay"], amsgrad=False, maximize=False, grad_scale=scale, found_inf=found_inf,
        )  # fmt: skip
        if found_inf is not None:
            counts.sub_(found_inf)
