"""Recordings of a function that works on tensors which stay where they are: replayed, it does the same once more.

On a GPU that is a CUDA graph. On a CPU it is a list of operations, for tests: the same rules, and the same numbers.
"""

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

WARM_UPS = 3  # what is made at first calls, moments and lists of them, no replay must make again
aten = torch.ops.aten
LOOKS = {
    aten._local_scalar_dense, aten.equal, aten.nonzero, aten.masked_select, aten.repeat_interleave, aten._unique2,
    aten.unique_dim, aten.unique_consecutive, aten.bincount, aten.histc,
}  # fmt: skip
"""Operations that look at a number, or whose result is as large as one says."""

Function = Callable[[], Any]
Record = Callable[[Function, torch.device], Function]


class CannotRecord(RuntimeError):
    """A function does what a recording cannot hold."""


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses what a CUDA graph cannot hold: looks at numbers, and tensors from elsewhere than the ``device``."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.check(func, args, kwargs)
        return func(*args, **kwargs)

    def check(self, func: Any, args: Any, kwargs: Any) -> None:
        """Raises :class:`CannotRecord` where a replay would not do what this call does."""
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if func.overloadpacket in LOOKS:
            raise CannotRecord(f"{func.overloadpacket.__name__} waits for a number")
        if func.overloadpacket in (aten.index, aten.index_put, aten.index_put_) and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        ):
            raise CannotRecord("an index that is a mask waits for a number")
        if func.overloadpacket is aten.lift_fresh:
            raise CannotRecord("a tensor is made of the host's numbers")
        if "attention" in func.overloadpacket.__name__:  # its seed is the host's, but inside a capture
            tensors = [tensor for tensor in tensors if tensor.dim()]
        elsewhere = {tensor.device for tensor in tensors} - {self.device}
        target = kwargs.get("device")
        if elsewhere or (target is not None and torch.device(target).type != self.device.type):
            raise CannotRecord(f"{func.overloadpacket.__name__} moves numbers between devices")


class Tape(Watch):  # type: ignore[no-untyped-call]
    """Notes each operation, with the memory that it read and the memory that it wrote."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        aliases = [value.alias_info for value in func._schema.returns]
        if not aliases or not all(alias is not None and not alias.is_write for alias in aliases):  # a view is the same
            self.calls.append((func, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        """Does all of it again, in the same memory."""
        for func, args, kwargs, before in self.calls:
            again = func(*args, **kwargs)
            for old, new in zip(pytree.tree_leaves(before), pytree.tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old is not new:
                    old.copy_(new)


def tape(function: Function, device: torch.device) -> Function:
    """``function`` as one list of operations, on a CPU."""
    for _ in range(WARM_UPS):
        function()
    recorded = Tape(device)
    with recorded:
        result = function()

    def replay() -> Any:
        recorded.replay()
        return result

    return replay


class CudaGraphs:
    """Makes CUDA graphs that share the memory of what they compute: they never run at the same time.

    What a graph reads and writes beside that has to stay where it is: networks, moments, tables, inputs.
    """

    def __init__(self) -> None:
        # one for all: memory is shared within a stream, and autograd remembers on which it met a parameter first
        self.stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, function: Function, device: torch.device) -> Function:
        """``function`` as a CUDA graph."""
        now = torch.cuda.current_stream(device)
        self.stream.wait_stream(now)
        with torch.cuda.stream(self.stream):
            for _ in range(WARM_UPS - 1):  # constants come to the device, too
                function()
            with Watch(device):  # an operation that a capture forbids would leave it broken
                function()
        now.wait_stream(self.stream)
        gc.collect()  # of passes on other streams, which a parameter's node would bring into the capture
        graph = torch.cuda.CUDAGraph()
        # torch.cuda.graph leaves its stream only where the capture succeeds
        with torch.cuda.stream(now), torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
            result = function()

        def replay() -> Any:
            graph.replay()
            return result

        return replay
