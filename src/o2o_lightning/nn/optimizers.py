"""Optimizers, whose steps a CUDA graph may hold: Adam with less to do between its kernels, AdamW and LAMB."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

MOMENTS = ("exp_avg", "exp_avg_sq")
SIDES = 8  # streams for steps that need not wait for each other


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

    def _accelerator_graph_capture_health_check(self) -> None:
        """Nothing: the fused kernel counts its steps in a tensor, on a CPU too."""

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

    def _listed(self, i: int, group: dict[str, Any]) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]:
        """Counts of steps, moments, and the counts one by one."""
        if i not in self._lists:
            states = [self.state[p] for p in group["params"]]
            counts = torch.stack([state["step"] for state in states])  # views of one tensor, counted up in one addition
            for state, count in zip(states, counts.unbind(), strict=True):
                state["step"] = count
            lists = [[state[key] for state in states] for key in (*MOMENTS, "step")]
            self._lists[i] = (counts, lists[0], lists[1], lists[2])
        return self._lists[i]

    @torch.no_grad()
    def _step_group(self, i: int, group: dict[str, Any], gradients: list[Tensor]) -> None:
        counts, means, squares, steps = self._listed(i, group)
        # as a GradScaler sets them: what all gradients were multiplied by, and whether the step is not to be made
        scale, found_inf = (getattr(self, name, None) for name in ("grad_scale", "found_inf"))
        counts.add_(1)
        _fused(group["params"], gradients, means, squares, steps, *_settings(group), found_inf, scale)
        if found_inf is not None:
            counts.sub_(found_inf)


def _settings(group: dict[str, Any]) -> tuple[Any, float, float, float, float]:
    """Of Adam: rate, β1, β2, ε and weight decay."""
    return group["lr"], *group["betas"], group["eps"], group["weight_decay"]


def _fused(
    parameters: list[Tensor], gradients: list[Tensor], means: list[Tensor], squares: list[Tensor], steps: list[Tensor],
    lr: Any, beta1: float, beta2: float, eps: float, weight_decay: float, found_inf: Tensor | None,
    scale: Tensor | None = None,
) -> None:  # fmt: skip
    """Torch's kernel: one step of all ``parameters``, but where ``found_inf`` is 1."""
    torch._fused_adam_(
        parameters, gradients, means, squares, [], steps, lr=lr, beta1=beta1, beta2=beta2, eps=eps,
        weight_decay=weight_decay, amsgrad=False, maximize=False, grad_scale=scale, found_inf=found_inf,
    )  # fmt: skip


def step_together(optimizers: Sequence[torch.optim.Optimizer], bad: Sequence[Tensor]) -> None:
    """A step of each seed's optimizer, but of one whose ``bad`` is 1; Adam's are few calls for all seeds.

    They are of equal networks, and have the learning rates of the first.
    """
    adams = [optimizer for optimizer in optimizers if isinstance(optimizer, Adam)]
    gradients = [[[p.grad for p in group["params"]] for group in adam.param_groups] for adam in adams]
    alike = len(adams) == len(optimizers) > 1 and all(map(Adam._is_plain, adams, gradients))
    if not alike or not isinstance(optimizers[0].param_groups[0]["lr"], Tensor):
        for optimizer, own in zip(optimizers, bad, strict=True):
            optimizer.found_inf = own  # type: ignore[attr-defined]
            optimizer.step()
        return
    step = _step_in_one_call if bad[0].device.type == "cpu" else _step_side_by_side
    for i in range(len(adams[0].param_groups)):
        if gradients[0][i][0] is not None:
            step(adams, i, [own[i] for own in gradients], bad)


@torch.no_grad()
def _step_in_one_call(adams: Sequence[Adam], i: int, gradients: Sequence[list[Tensor]], bad: Sequence[Tensor]) -> None:
    """On a CPU, where it shows at once whether one of the seeds is bad."""
    group, lists = adams[0].param_groups[i], [adam._listed(i, adam.param_groups[i]) for adam in adams]
    parameters = [p for adam in adams for p in adam.param_groups[i]["params"]]
    joined = [[tensor for own in lists for tensor in own[k]] for k in (1, 2, 3)]
    torch.ops.o2o_lightning.adam_of_all(
        bad, parameters, [gradient for own in gradients for gradient in own], *joined, [own[0] for own in lists],
        *_settings(group),
    )  # fmt: skip


@torch.no_grad()
def _step_side_by_side(adams: Sequence[Adam], i: int, gradients: Sequence[list[Tensor]], bad: Sequence[Tensor]) -> None:
    """A call a seed, which its own ``bad`` keeps from its step; on a GPU they need not wait for each other."""
    counts, group = _counts_of_all(adams, i), adams[0].param_groups[i]
    counts.add_(1)
    with _forked(bad[0].device, len(adams)) as branches:
        for adam, own, found_inf, branch in zip(adams, gradients, bad, branches, strict=True):
            _, means, squares, steps = adam._lists[i]
            with branch:
                _fused(adam.param_groups[i]["params"], own, means, squares, steps, *_settings(group), found_inf)
    counts.sub_(torch.stack(list(bad)).unsqueeze(1))


def _counts_of_all(adams: Sequence[Adam], i: int) -> Tensor:
    """The counts of steps ``[S, L]`` of a group of each, of which theirs are views from now on."""
    lists = [adam._listed(i, adam.param_groups[i]) for adam in adams]
    joint = lists[0][0]._base
    if (
        joint is None
        or joint.shape != (len(lists), len(lists[0][0]))
        or any(own[0]._base is not joint for own in lists)
    ):
        joint = torch.stack([own[0] for own in lists])
        for adam, counts, (_, means, squares, _) in zip(adams, joint.unbind(), lists, strict=True):
            steps = [*counts.unbind()]
            for parameter, count in zip(adam.param_groups[i]["params"], steps, strict=True):
                adam.state[parameter]["step"] = count
            adam._lists[i] = (counts, means, squares, steps)
    return joint


@contextmanager
def _forked(device: torch.device, count: int) -> Iterator[list[AbstractContextManager[Any]]]:
    """For each of ``count`` calls, where it runs: on a GPU on one of a few streams, which the current one waits for."""
    if device.type != "cuda":
        yield [nullcontext()] * count
        return
    now, sides = torch.cuda.current_stream(device), _sides(device)[:count]
    for side in sides:
        side.wait_stream(now)
    try:
        yield [torch.cuda.stream(sides[k % len(sides)]) for k in range(count)]
    finally:
        for side in sides:
            now.wait_stream(side)


@cache
def _sides(device: torch.device) -> list[Any]:
    return [torch.cuda.Stream(device) for _ in range(SIDES)]  # type: ignore[no-untyped-call]


def _adam_of_all(
    bad: list[Tensor], parameters: list[Tensor], gradients: list[Tensor], means: list[Tensor], squares: list[Tensor],
    steps: list[Tensor], counts: list[Tensor], lr: Tensor, beta1: float, beta2: float, eps: float, weight_decay: float,
) -> None:  # fmt: skip
    def step(part: slice, found_inf: Tensor | None) -> None:
        lists = (parameters[part], gradients[part], means[part], squares[part], steps[part])
        _fused(*lists, lr, beta1, beta2, eps, weight_decay, found_inf)

    torch._foreach_add_(counts, 1)
    if not any(own.item() for own in bad):
        step(slice(None), None)
        return
    size = len(parameters) // len(bad)
    for i, own in enumerate(bad):
        step(slice(i * size, (i + 1) * size), own)
        counts[i].sub_(own)


LIBRARY = torch.library.Library("o2o_lightning", "FRAGMENT")  # type: ignore[no-untyped-call]
LIBRARY.define(  # type: ignore[no-untyped-call]
    "adam_of_all(Tensor[] bad, Tensor(a!)[] parameters, Tensor[] gradients, Tensor(b!)[] means, Tensor(c!)[] squares, "
    "Tensor(d!)[] steps, Tensor(e!)[] counts, Tensor lr, float beta1, float beta2, float eps, float weight_decay) -> ()"
)
LIBRARY.impl("adam_of_all", _adam_of_all, "CPU")  # type: ignore[no-untyped-call]


class AdamW(torch.optim.AdamW):
    """torch's fused AdamW, which a CUDA graph may hold."""

    def __init__(self, groups: list[dict[str, Any]], weight_decay: float) -> None:
        super().__init__(groups, weight_decay=weight_decay, fused=True)

    def _accelerator_graph_capture_health_check(self) -> None:
        """Nothing, as in :class:`Adam`."""


class LAMB(torch.optim.Optimizer):
    r"""Adam whose step on each parameter is scaled to the parameter's own norm; neither torch nor TorchRL has it.

    You et al. 2020, https://arxiv.org/abs/1904.00962, Algorithm 2.

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
            norms, lengths = torch._foreach_norm(parameters), torch._foreach_norm(update)
            for part, norm, length in zip(update, norms, lengths, strict=True):
                part.mul_(torch.where((norm > 0) & (length > 0), norm / length, torch.ones_like(norm)))
        torch._foreach_mul_(update, group["lr"])  # which may be a tensor
        torch._foreach_sub_(parameters, update)
