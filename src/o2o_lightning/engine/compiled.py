"""Steps as compiled graphs: loss and gradients of each are one."""

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from o2o_lightning.engine.engine import Engine
from o2o_lightning.methods.method import Batch, Loss, Method, Noise, Step


class CompiledEngine(Engine):
    """Compiles each step of a method when it is first evaluated.

    At run time nothing is recorded, walked backwards or looked up but the batch's shapes; with networks of this size
    that costs as much as the kernels between the products. On a GPU each graph is recorded and replayed as a CUDA
    graph, for every update of a chunk.
    """

    def __init__(self, method: Method, backend: str | Callable[..., Any] = "inductor") -> None:
        super().__init__(method)
        # the graphs of an earlier phase of this process are done with, and would count against dynamo's limit
        torch._dynamo.reset()
        torch._dynamo.config.trace_autograd_ops = True
        self.replays = next(method.parameters()).device.type == "cuda"
        self.backend = backend
        self._compiled: dict[str, CompiledStep] = {}

    @property
    def options(self) -> dict[str, Any]:
        """What ``torch.compile`` is told."""
        options: dict[str, Any] = {"guard_filter_fn": torch.compiler.keep_tensor_guards_unsafe}
        if self.backend == "inductor":  # a test's own backend knows none of these
            options |= {"size_asserts": False, "cpp_wrapper": not self.replays, "triton.cudagraphs": self.replays}
        return options

    def evaluate(self, step: Step, batch: Batch, noise: Noise) -> Loss:
        batch = dict(batch.items(True, True))
        if step.__name__ not in self._compiled:
            self._compiled[step.__name__] = CompiledStep(self, step, batch, noise)
        if self.replays:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        loss = self._compiled[step.__name__](batch, noise)
        if not self.replays:
            return loss
        # the next replay writes to the same memory, and the chunk's record outlives it
        return Loss(loss.value.clone(), {name: value.clone() for name, value in loss.metrics.items()}, loss.state)


class CompiledStep:
    """``(batch, noise) → Loss`` whose backward pass hands out gradients that the graph has formed with the loss."""

    def __init__(self, engine: CompiledEngine, step: Step, batch: Batch, noise: Noise) -> None:
        learners = [parameter for parameter in engine.method.parameters() if parameter.requires_grad]
        with torch.random.fork_rng():  # dropout draws, and a run that is resumed compiles once more
            found = torch.autograd.grad(step(batch, noise).value, learners, allow_unused=True)
        self.parameters = [p for p, gradient in zip(learners, found, strict=True) if gradient is not None]
        parameters = self.parameters

        def joint(batch: Batch, noise: Noise) -> tuple[Loss, tuple[Tensor, ...]]:
            loss = step(batch, noise)
            with torch.autocast(loss.value.device.type, enabled=False):  # gradients keep the precision of the products
                gradients = torch.autograd.grad(loss.value, parameters)
            # detached: else the graph would carry a gradient for each of them
            metrics, state = ({name: value.detach() for name, value in part.items()} for part in loss[1:])
            return Loss(loss.value.detach(), metrics, state), gradients

        # dynamo finds its graphs by the code object: with one of its own, no guard has to tell this step from others
        code = joint.__code__.replace(co_name=f"{step.__name__}_{id(self)}")
        own = FunctionType(code, joint.__globals__, joint.__name__, None, joint.__closure__)
        self._run = torch.compile(own, fullgraph=True, dynamic=False, backend=engine.backend, options=engine.options)

    def __call__(self, batch: Batch, noise: Noise) -> Loss:
        loss, gradients = self._run(batch, noise)
        value = KnownGradients.apply(loss.value, list(gradients), *self.parameters)  # type: ignore[no-untyped-call]
        return loss._replace(value=value)  # type: ignore[no-any-return]


class KnownGradients(torch.autograd.Function):
    """A loss whose gradients were formed with it."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        gradients, ctx.gradients = ctx.gradients, None  # held nowhere else, they become the parameters' own
        if upstream.device.type != "cpu" or upstream != 1.0:
            gradients = torch._foreach_mul(gradients, upstream)
        return None, None, *gradients
