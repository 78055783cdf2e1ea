"""The part of an update that is one graph: a loss from a batch, noise and networks, as written or compiled."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import lightning as L
import torch
from tensordict import TensorDictBase
from torch import Tensor

from o2o_lightning.engine.noise import Noise
from o2o_lightning.errors import UserError

if TYPE_CHECKING:
    from o2o_lightning.phases.base import Loss

Method = TypeVar("Method", bound=Callable[..., "Loss"])
Batch = dict[Any, Tensor]


def step_function(method: Method) -> Method:
    """Marks a phase's ``(batch, *noise) → Loss`` as one graph, which ``--model.compile true`` compiles.

    Whatever changes from one update to the next must reach it as a tensor: a parameter, a buffer, an argument.
    """

    def graph(phase: SteppingModule, batch: Batch, *noise: Tensor) -> Loss:
        loss = method(phase, batch, *noise)
        # else the backward graph would carry a gradient for each of them
        return loss._replace(metrics={name: value.detach() for name, value in loss.metrics.items()})

    @functools.wraps(method)
    def step(phase: SteppingModule, batch: TensorDictBase, *noise: Tensor) -> Loss:
        if phase.compiler is None:
            return method(phase, batch, *noise)
        return phase.compiler(graph, phase, dict(batch.items(True, True)), *noise)

    return step  # type: ignore[return-value]


class StepCompiler:
    """Compiles the step functions of one phase, each when it is first called: loss and gradients are one graph.

    At run time nothing is recorded, walked backwards or looked up but the batch's shapes; with networks of this size
    that costs as much as the kernels between the products. On a GPU each graph is recorded and replayed as a CUDA
    graph, for every update of a chunk.
    """

    def __init__(self, device: torch.device, backend: str | Callable[..., Any] = "inductor") -> None:
        # the graphs of an earlier phase of this process are done with, and would count against dynamo's limit
        torch._dynamo.reset()
        torch._dynamo.config.trace_autograd_ops = True
        self.replays = device.type == "cuda"
        self.backend = backend
        self._compiled: dict[Callable[..., Loss], CompiledStep] = {}

    @property
    def options(self) -> dict[str, Any]:
        """What ``torch.compile`` is told."""
        options: dict[str, Any] = {"guard_filter_fn": torch.compiler.keep_tensor_guards_unsafe}
        if self.backend == "inductor":  # a test's own backend knows none of these
            options |= {"size_asserts": False, "cpp_wrapper": not self.replays, "triton.cudagraphs": self.replays}
        return options

    def __call__(self, graph: Callable[..., Loss], phase: SteppingModule, batch: Batch, *noise: Tensor) -> Loss:
        if graph not in self._compiled:
            self._compiled[graph] = CompiledStep(self, graph, phase, batch, noise)
        if self.replays:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        loss = self._compiled[graph](batch, *noise)
        if not self.replays:
            return loss
        # the next replay writes to the same memory, and the chunk's record outlives it
        return loss._replace(
            value=loss.value.clone(), metrics={name: value.clone() for name, value in loss.metrics.items()}
        )


class CompiledStep:
    """``(batch, *noise) → Loss`` whose backward pass hands out gradients that the graph has formed with the loss."""

    def __init__(
        self, compiler: StepCompiler, graph: Callable[..., Loss], phase: Any, batch: Batch, noise: tuple[Tensor, ...]
    ) -> None:
        example = graph(phase, batch, *noise)
        learners = [parameter for parameter in phase.parameters() if parameter.requires_grad]
        found = torch.autograd.grad(example.value, learners, allow_unused=True)
        self.parameters = [p for p, gradient in zip(learners, found, strict=True) if gradient is not None]
        self._loss_type = type(example)
        parameters = self.parameters

        def joint(batch: Batch, *noise: Tensor) -> tuple[Tensor, dict[str, Tensor], tuple[Tensor, ...]]:
            loss = graph(phase, batch, *noise)
            with torch.autocast(loss.value.device.type, enabled=False):  # gradients keep the precision of the products
                gradients = torch.autograd.grad(loss.value, parameters)
            return loss.value.detach(), loss.metrics, gradients

        # dynamo finds its graphs by the code object: with one of its own, no guard has to tell this step from others
        code = joint.__code__.replace(co_name=f"{graph.__name__}_{id(self)}")
        own = FunctionType(code, joint.__globals__, joint.__name__, None, joint.__closure__)
        backend, options = compiler.backend, compiler.options
        self._run = torch.compile(own, fullgraph=True, dynamic=False, backend=backend, options=options)

    def __call__(self, batch: Batch, *noise: Tensor) -> Loss:
        value, metrics, gradients = self._run(batch, *noise)
        return self._loss_type(KnownGradients.apply(value, list(gradients), *self.parameters), metrics)  # type: ignore[no-untyped-call]


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


class SteppingModule(L.LightningModule):
    """What step functions need besides networks: noise, and a compiler if ``compile``."""

    pays_back: ClassVar[int | None] = None  # updates that earn the compilation, docs/speed.md; None where none do

    def __init__(self, compile: bool = False) -> None:
        super().__init__()
        if compile and not (torch.cuda.is_available() or shutil.which(os.environ.get("CXX", "g++"))):
            raise UserError(
                "--model.compile true: it needs a C++ compiler, and there is no g++. Install one, or name it in the "
                "environment variable CXX."
            )
        self.compiles = compile
        self._noise: Noise | None = None
        self._compiler: StepCompiler | None = None

    @property
    def compiler(self) -> StepCompiler | None:
        """What runs the step functions, if not Python."""
        if self.compiles and self._compiler is None:
            self._compiler = StepCompiler(self.device)
        return self._compiler

    def compile_note(self, updates: int) -> str | None:
        """What a user should know of compiling a run of so many updates."""
        if self.device.type != "cpu":
            return None
        if self.pays_back is None:
            return "compiling, which is not known to pay back in this phase" if self.compiles else None
        earned = f"earns its compilation after about {self.pays_back:,} updates; this phase makes {updates:,}"
        if self.compiles:
            return f"compiling, which takes some seconds to a minute and {earned}"
        return f"--model.compile true {earned}" if updates >= 2 * self.pays_back else None

    @property
    def noise(self) -> Noise:
        """The phase's own random stream, so that nothing else's draws can shift it."""
        if self._noise is None:
            seed = int(os.environ.get("PL_GLOBAL_SEED", "0")) * 1009 + self.global_rank + 1
            self._noise = Noise(seed, self.device)
        return self._noise

    def normal_like(self, tensor: Tensor) -> Tensor:
        """Standard normal noise of ``tensor``'s shape from the phase's own stream."""
        return self.noise.normal(tuple(tensor.shape))

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """Uniform noise in [−1, 1) from the phase's own stream."""
        return self.noise.uniform(tuple(shape))

    def local_state(self) -> dict[str, Any]:
        """What this process needs to go on exactly, and a checkpoint does not hold: tensors and primitives."""
        return {"noise": self.noise.state()}

    def load_local_state(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`local_state`, when training starts."""
        self.noise.load_state(state["noise"])
