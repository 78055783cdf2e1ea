"""Several seeds of one run: each makes its own updates, and the steps of all are evaluated together.

A seed keeps its lane: networks ``[i]`` of tensors ``[S, …]``, whoever else is there. No lane's numbers depend on what
is in another, so that a seed follows the same bits when others have stopped, or are behind it.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from o2o_lightning.engine.captured import Later, Piece
from o2o_lightning.engine.compiled import KnownGradients
from o2o_lightning.engine.engine import Ask, Engine, Update
from o2o_lightning.engine.gather import Gather, side_by_side
from o2o_lightning.engine.record import Record
from o2o_lightning.engine.stacked import StackedEngine, joined
from o2o_lightning.engine.together import Together, Wish
from o2o_lightning.engine.whole import Row
from o2o_lightning.errors import UserError
from o2o_lightning.methods.method import Loss, Method
from o2o_lightning.nn.optimizers import laid_out_as
from o2o_lightning.turns import Turns

Form = tuple[str, tuple[Any, ...]]


class Waiting(NamedTuple):
    """A seed that wants to make updates, of which number ``first`` is the first; and what they failed of."""

    updates: Update
    first: int
    failure: list[BaseException]


class Lanes:
    """The seeds of one phase.

    Args:
        count: S, of seeds that were asked for; some may be missing.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.turns = Turns(self._answer)
        self.methods: dict[int, Method] = {}
        self._engine: StackedEngine | None = None
        self.together = Together(self._stacked)

    def end(self) -> None:
        """Gives back what recordings and stacked networks took of memory."""
        self._engine, self.together = None, Together(self._stacked)

    def _answer(self, waiting: dict[int, Waiting | Wish]) -> None:
        wishes = {place: wish for place, wish in waiting.items() if isinstance(wish, Wish)}
        if len(wishes) == len(waiting):
            self.together.make(wishes)
        elif not wishes:
            self._step(waiting)  # type: ignore[arg-type]
        for place in wishes:  # where some make theirs step by step, each has to
            del waiting[place]

    def _stacked(self) -> StackedEngine:
        """The networks of all in one memory."""
        if self._engine is None:
            self._engine = StackedEngine(joined(self.methods, self.count), self.count)
        return self._engine

    def _step(self, waiting: dict[int, Waiting]) -> None:
        """Makes the updates of those that are furthest behind: whoever is ahead, after a kill, waits."""
        first = min(request.first for request in waiting.values())
        going = {place: request for place, request in waiting.items() if request.first == first}
        asks: dict[int, Ask] = {}

        def go_on(place: int, loss: Loss | None) -> None:
            asks.pop(place, None)
            try:
                asks[place] = going[place].updates.send(loss)  # type: ignore[arg-type]
            except StopIteration:
                pass
            except BaseException as failure:
                going[place].failure.append(failure)

        for place in going:
            go_on(place, None)
        while asks:
            for group in _alike(asks):
                try:
                    losses = self._evaluate({place: asks[place] for place in group})
                except BaseException as failure:
                    for place in group:
                        del asks[place]
                        going[place].failure.append(failure)
                    continue
                for place, loss in losses.items():
                    go_on(place, loss)
        for place in going:
            del waiting[place]

    def _evaluate(self, asks: dict[int, Ask]) -> dict[int, Loss]:
        """The loss of each, whose backward pass hands out gradients that were formed for all at once."""
        engine = self._stacked()
        anyone = next(iter(asks.values()))  # whose batch goes through an empty lane as well, and nothing comes of it
        each = [asks.get(place, anyone) for place in range(self.count)]
        batch = side_by_side([ask.batch for ask in each])
        noise = {name: torch.stack([ask.noise[name] for ask in each]) for name in anyone.noise}
        try:
            loss = engine.evaluate(getattr(engine.method, anyone.step.__name__), batch, noise)
            found = torch.autograd.grad(loss.value.sum(), learners(engine.method), allow_unused=True)
        except RuntimeError as error:
            raise UserError(
                f"seeds=: the step {anyone.step.__name__} of {engine.method.name} can't be taken for several seeds at "
                f"once ({str(error).splitlines()[0]}). Run them one by one: `o2o sweep seed_everything=0,1,2 …`."
            ) from error
        values = loss.value.detach()
        losses = {}
        for place in asks:
            pairs = zip(learners(self.methods[place]), found, strict=True)
            own = [(parameter, gradient[place]) for parameter, gradient in pairs if gradient is not None]
            gradients = [laid_out_as(parameter, gradient) for parameter, gradient in own]
            value = KnownGradients.apply(values[place], gradients, *(parameter for parameter, _ in own))  # type: ignore[no-untyped-call]
            metrics, state = ({k: v.detach()[place] for k, v in part.items()} for part in (loss.metrics, loss.state))
            losses[place] = Loss(value, metrics, state)
        return losses


class Lane(NamedTuple):
    """The place of one seed."""

    lanes: Lanes
    place: int

    def engine(self, method: Method) -> Engine:
        """What evaluates its steps; its own where a step draws random numbers itself."""
        if method.draws:
            return Engine(method)
        self.lanes.methods[self.place] = method
        return LaneEngine(method, self)

    def pause(self) -> None:
        """Lets the others go on, while another process is at work for this seed."""
        self.lanes.turns.pause(self.place)

    def captured(self, method: Method, optimizer: torch.optim.Optimizer, record: Record) -> "LaneCaptured":
        """What makes its whole updates, in one recording with those of the others."""
        together, self.lanes.methods[self.place] = self.lanes.together, method
        together.learners[self.place], together.record = (method, optimizer), record
        return LaneCaptured(method, self)


class LaneEngine(Engine):
    """One seed's steps, evaluated together with those of the others."""

    def __init__(self, method: Method, lane: Lane) -> None:
        super().__init__(method)
        self.lane = lane

    def run(self, updates: Update, first: int) -> None:
        request = Waiting(updates, first, [])
        self.lane.lanes.turns.meet(self.lane.place, request)
        for failure in request.failure:
            raise failure


class LaneCaptured:
    """One seed's whole updates, as :class:`~o2o_lightning.engine.captured.Captured` makes them, with the others'."""

    def __init__(self, method: Method, lane: Lane) -> None:
        self.method, self.lane = method, lane

    def made(self) -> Later:
        """As there."""
        return self.lane.lanes.together.made(self.lane.place)

    def forget_if_moved(self) -> None:
        """As there, before the next updates."""
        self.lane.lanes.together.loaded = True

    def __call__(self, pieces: Sequence[Piece], gather: Gather) -> Iterator[list[Row]] | None:
        """As there; None where the others make other updates now, and each has to make its own."""
        wish = Wish([(piece.moments, piece.order, piece.due) for piece in pieces], pieces, gather)
        self.lane.lanes.turns.meet(self.lane.place, wish)
        return None if wish.rows is None else _given(wish.rows, wish.failure)


def _given(rows: Sequence[list[Row]], failure: BaseException | None) -> Iterator[list[Row]]:
    yield from rows
    if failure is not None:
        raise failure


def learners(method: Method) -> list[Tensor]:
    """The parameters that may get a gradient."""
    return [parameter for parameter in method.parameters() if parameter.requires_grad]


def _alike(asks: dict[int, Ask]) -> list[list[int]]:
    """Places whose steps are the same, on batches of one form."""
    groups: dict[Form, list[int]] = {}
    for place, ask in asks.items():
        groups.setdefault((ask.step.__name__, tuple(ask.batch["action"].shape)), []).append(place)
    return [*groups.values()]
