"""Whole updates, recorded when an order of steps first comes and replayed from then on."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from o2o_lightning.engine.record import CannotRecord, Function, Record
from o2o_lightning.engine.whole import Order, Rates, Row, WholeUpdates, kept_as_it_is
from o2o_lightning.errors import reason
from o2o_lightning.methods.method import Batch, Moment, Noise

Batches = Callable[[Any], Iterable[Batch]]
MOST = 64  # recordings; the oldest goes first
Values = list[Rates]  # of each update


class Piece(NamedTuple):
    """Updates that are replayed as one.

    Attributes:
        moments: where each of the K stands.
        order: of the steps of each.
        drawn: what their batches are made of, tensors in any structure; of stacked seeds, what each has.
        noise: of all, ``[K, …]`` by name; of stacked seeds, what each has.
        due: whose metrics are wanted.
    """

    moments: Sequence[Moment]
    order: Sequence[Order]
    drawn: Any
    noise: Any
    due: Sequence[bool]


class Later:
    """A number that a device is at work on: who asks waits for it, and for nothing that comes after it."""

    def __init__(self, number: Tensor) -> None:
        self._event: Any = None
        if number.is_cuda:
            self._number = torch.empty(number.shape, dtype=number.dtype, pin_memory=True)
            self._number.copy_(number, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()
        else:
            self._number = number.clone()

    def __int__(self) -> int:
        if self._event is not None:
            self._event.synchronize()
        return int(self._number)


class Captured:
    """Updates by replays of recordings: one for each order of steps, and form of what goes in.

    Args:
        updates: what is recorded.
        record: makes a recording of a function whose memory stays where it is.
    """

    def __init__(self, updates: WholeUpdates, record: Record) -> None:
        self.updates, self.record = updates, record
        self._recorded: dict[Any, Recorded] = {}
        self._forms: list[Any] = []
        self._held: list[tuple[Any, str, Any]] = []
        self._memory: list[int] = []

    def made(self) -> Later:
        """How many updates there will have been, of those asked for, before the first loss that is not finite."""
        return Later(self.updates.made)

    @property
    def count(self) -> int:
        """How many recordings there are."""
        return len(self._recorded)

    def forget_if_moved(self) -> None:
        """Drops the recordings if networks or moments are in another memory by now, as after a load."""
        if not self._recorded:
            return
        if any(table[name] is not value for table, name, value in self._held) or _addresses(self._held) != self._memory:
            self._recorded = {}

    def __call__(self, pieces: Iterable[Piece], gather: Batches) -> Iterator[list[Row]]:
        """Makes the updates of one piece after the other, as :meth:`replay` does."""
        return (self.replay(piece, gather) for piece in pieces)

    def replay(self, piece: Piece, gather: Batches) -> list[Row]:
        """As :class:`WholeUpdates`, on the batches that ``gather`` makes of what was drawn; rows of what is due.

        The gather is part of the recording.

        Raises:
            CannotRecord: these updates have not come yet and can't be recorded; nothing of them has been made.
        """
        moments, measured = piece.moments, any(piece.due)
        rates = self.updates.rates(moments)
        leaves, form = pytree.tree_flatten((piece.drawn, piece.noise))
        key = piece.order, measured, self._number_of(form), tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        if key not in self._recorded:
            if len(self._recorded) == MOST:
                del self._recorded[next(iter(self._recorded))]
            self._recorded[key] = self._made(moments, leaves, form, rates, gather, measured)
            self._held = self._holders()
            self._memory = _addresses(self._held)
        rows = self._recorded[key](leaves, rates)
        self.updates.set_rates(rates[-1])
        return [_kept(row) if due else {} for row, due in zip(rows, piece.due, strict=True)] if measured else rows

    def _number_of(self, form: Any) -> int:
        """Of a structure of inputs; the text of a large one takes four times as long as to compare it."""
        if form not in self._forms:
            self._forms.append(form)
        return self._forms.index(form)

    def _made(
        self,
        moments: Sequence[Moment],
        leaves: list[Tensor],
        form: Any,
        values: Values,
        gather: Batches,
        means: bool,
    ) -> "Recorded":
        inputs, rates = Inputs(leaves, self.updates.device), RateMemory(values, self.updates.device)
        inputs.fill(leaves)

        def run() -> list[Row]:
            drawn, noise = pytree.tree_unflatten(inputs.leaves, form)
            each = parts_of(self.updates.engine.joined(noise), len(moments))
            return self.updates(moments, gather(drawn), each, rates.views, means)

        try:
            with kept_as_it_is(self.updates):  # to record a function is to run it
                return Recorded(inputs, rates, self.record(run, self.updates.device))
        except Exception as error:  # what is wrong with the updates themselves shows when they are made one by one
            raise CannotRecord(reason(error)) from error

    def _holders(self) -> list[tuple[Any, str, Any]]:
        """Every table that holds a tensor, its name there, and the tensor; and those that hold a table of moments."""
        learners = self.updates.learners.values()
        found: list[tuple[Any, str, Any]] = [(vars(optimizer), "state", optimizer.state) for _, optimizer in learners]
        tables: list[dict[str, Any]] = [state for _, optimizer in learners for state in optimizer.state.values()]
        for method in (self.updates.engine.method, *(method for method, _ in learners)):
            for module in method.modules():
                tables += [module._parameters, module._buffers]
        return found + [(table, name, value) for table in tables for name, value in table.items() if value is not None]


def _kept(row: Row) -> Row:
    """A copy: the next replay writes to the same memory."""
    return dict(zip(row, torch.stack([*row.values()]).unbind(), strict=True)) if row else row


def _addresses(held: list[tuple[Any, str, Any]]) -> list[int]:
    return [value.data_ptr() for _, _, value in held if isinstance(value, Tensor)]


class Recorded:
    """A recording, and the memory that its inputs come in."""

    def __init__(self, inputs: "Inputs", rates: "RateMemory", replay: Function) -> None:
        self.inputs, self.rates, self.replay = inputs, rates, replay

    def __call__(self, leaves: list[Tensor], rates: Values) -> list[Row]:
        self.inputs.fill(leaves)
        self.rates.fill(rates)
        return self.replay()  # type: ignore[no-any-return]


def parts_of(noise: Mapping[str, Tensor], count: int) -> list[Noise]:
    """The noise of each of K updates, of theirs by name ``[K, …]``."""
    return [{name: part[k] for name, part in noise.items()} for k in range(count)]


class Inputs:
    """Memory for tensors like ``leaves``; what comes from the host comes in one copy a type."""

    def __init__(self, leaves: list[Tensor], device: torch.device) -> None:
        self.leaves = [torch.empty(leaf.shape, dtype=leaf.dtype, device=device) for leaf in leaves]
        self._near = [i for i, leaf in enumerate(leaves) if leaf.device == device]
        self._away: list[tuple[list[int], Tensor]] = []
        away = [i for i, leaf in enumerate(leaves) if leaf.device != device]
        for dtype in dict.fromkeys(leaves[i].dtype for i in away):
            places = [i for i in away if leaves[i].dtype is dtype]
            joined = torch.empty(sum(leaves[i].numel() for i in places), dtype=dtype, device=device)
            parts = torch.split(joined, [leaves[i].numel() for i in places])
            for i, part in zip(places, parts, strict=True):
                self.leaves[i] = part.view(leaves[i].shape)
            self._away.append((places, joined))

    def fill(self, leaves: list[Tensor]) -> None:
        """Copies ``leaves`` there."""
        if self._near:
            torch._foreach_copy_([self.leaves[i] for i in self._near], [leaves[i] for i in self._near])
        for places, joined in self._away:
            flat = torch.empty(joined.shape, dtype=joined.dtype, pin_memory=joined.is_cuda)
            torch.cat([leaves[i].reshape(-1) for i in places], out=flat)
            joined.copy_(flat, non_blocking=True)  # from other memory it would wait for all that is under way


class RateMemory:
    """Memory for rates like the ``values``, and ``views`` of it as 0-d tensors."""

    def __init__(self, values: Values, device: torch.device) -> None:
        names = [*values[0]]
        # the kernel of a CPU computes with a rate in float64, that of a GPU reads a float32
        precision = torch.float64 if device.type == "cpu" else torch.float32
        self.memory = torch.tensor([[*row.values()] for row in values], dtype=precision, device=device)
        self.views = [dict(zip(names, row.unbind(), strict=True)) for row in self.memory]
        self._held = values

    def fill(self, values: Values) -> None:
        """Copies the ``values`` there, if they are others."""
        if values != self._held:
            rows = [[*row.values()] for row in values]
            flat = torch.tensor(rows, dtype=self.memory.dtype, pin_memory=self.memory.is_cuda)
            self.memory.copy_(flat, non_blocking=True)
            self._held = values
