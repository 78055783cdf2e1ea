"""Recordings of a function that works on tensors which stay where they are: replayed, it does the same once more.

On a GPU that is a CUDA graph. On a CPU it is a list of operations: the same rules, and the same numbers.
"""

import gc
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
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
        if torch.Tag.pointwise in func.tags:  # whose kernels take a number of the host by value, as vmap makes them
            tensors = [tensor for tensor in tensors if tensor.dim() or tensor.device.type != "cpu"]
        elsewhere = {tensor.device for tensor in tensors} - {self.device}
        target = kwargs.get("device")
        if elsewhere or (target is not None and torch.device(target).type != self.device.type):
            raise CannotRecord(f"{func.overloadpacket.__name__} moves numbers between devices")


class Tape(Watch):  # type: ignore[no-untyped-call]
    """Writes down each operation, as a function that makes them again.

    A tensor that no operation has made is read, and written, where it is.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.graph, self.root = fx.Graph(), nn.Module()
        self._nodes: dict[int, fx.Node] = {}
        self._alive: list[Tensor] = []  # a tensor is known by its identity, which another may have after it
        self._made, self._outside = set[int](), set[int]()  # storages

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "profiler":  # what an optimizer's step is named
            return func(*args, **(kwargs or {}))
        self.check(func, args, kwargs or {})
        result = func(*args, **(kwargs or {}))
        if self._shows_no_more(func, args, result):
            return result
        given = pytree.tree_map_only(Tensor, self.node, (args, kwargs or {}))
        node = self.graph.call_function(func, *given)
        if isinstance(result, Tensor):
            self._note(result, node)
        elif isinstance(result, list | tuple):
            for i, tensor in enumerate(result):
                if isinstance(tensor, Tensor):
                    self._note(tensor, self.graph.call_function(operator.getitem, (node, i)))
        return result

    def _shows_no_more(self, func: Any, args: Any, result: Any) -> bool:
        """Whether it is a view that needs not be made again: of memory from outside, or of a tensor as it is."""
        if not is_view(func):
            return False
        seen = args[0]
        if id(seen) not in self._nodes and seen.untyped_storage().data_ptr() not in self._made:
            self._alive += result if isinstance(result, list | tuple) else [result]
            return True
        same = isinstance(result, Tensor) and result.shape == seen.shape and result.stride() == seen.stride()
        if same and result.storage_offset() == seen.storage_offset() and result.dtype == seen.dtype:
            self._keep(result, self.node(seen))
            return True
        return False

    def node(self, tensor: Tensor) -> fx.Node:
        """What stands for ``tensor``.

        Raises:
            CannotRecord: it shares memory that the function has made, in a way that no operation shows.
        """
        if id(tensor) not in self._nodes:
            if tensor.untyped_storage().data_ptr() in self._made:
                raise CannotRecord("a tensor is made out of sight")
            name = f"tensor_{len(self._alive)}"
            setattr(self.root, name, tensor)
            self._outside.add(tensor.untyped_storage().data_ptr())
            self._keep(tensor, self.graph.get_attr(name))
        return self._nodes[id(tensor)]

    def finished(self, result: Any) -> Function:
        """What makes all of it again, in the same order; ``result`` of tensors anew."""
        leaves, form = pytree.tree_flatten(result)
        self.graph.output([self.node(leaf) for leaf in leaves])
        again = fx.GraphModule(self.root, self.graph)

        def replay() -> Any:
            with torch.no_grad():
                return pytree.tree_unflatten(again(), form)

        return replay

    def _note(self, tensor: Tensor, node: fx.Node) -> None:
        if id(tensor) not in self._nodes:  # what is written in place is what it was
            self._keep(tensor, node)
            self._made |= {tensor.untyped_storage().data_ptr()} - self._outside

    def _keep(self, tensor: Tensor, node: fx.Node) -> None:
        self._nodes[id(tensor)] = node
        self._alive.append(tensor)


def is_view(func: Any) -> bool:
    """Whether an operation shows memory in another form, and writes none."""
    aliases = [value.alias_info for value in func._schema.returns]
    return bool(aliases) and all(alias is not None and not alias.is_write for alias in aliases)


def tape(function: Function, device: torch.device) -> Function:
    """``function`` as one list of operations, on a CPU."""
    for _ in range(WARM_UPS):
        function()
    recorded = Tape(device)
    with recorded:
        result = function()
    return recorded.finished(result)


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
        try:
            with torch.cuda.stream(self.stream):
                for _ in range(WARM_UPS - 1):  # constants come to the device, too
                    function()
                with Watch(device):  # an operation that a capture forbids would leave it broken
                    function()
        finally:
            now.wait_stream(self.stream)  # what is put back after a refusal comes behind what was begun
        gc.collect()  # of passes on other streams, which a parameter's node would bring into the capture
        graph = torch.cuda.CUDAGraph()
        # torch.cuda.graph leaves its stream only where the capture succeeds
        with torch.cuda.stream(now), torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
            result = function()

        def replay() -> Any:
            graph.replay()
            return result

        return replay
