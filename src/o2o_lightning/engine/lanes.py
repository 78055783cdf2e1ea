"""Several seeds of one run: each makes its own updates, and the steps of all are evaluated together.

A seed keeps its lane: networks ``[i]`` of tensors ``[S, …]``, whoever else is there. No lane's numbers depend on what
is in another, so that a seed follows the same bits when others have stopped, or are behind it.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from o2o_lightning.engine.compiled import KnownGradients
from o2o_lightning.engine.engine import Ask, Engine, Update
from o2o_lightning.engine.stacked import StackedEngine, stacked
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
        self._methods: dict[int, Method] = {}
        self._engine: StackedEngine | None = None

    def engine(self, place: int, method: Method) -> Engine:
        """What evaluates the steps of the seed of lane ``place``; its own where a step draws random numbers itself."""
        if method.draws:
            return Engine(method)
        self._methods[place] = method
        return LaneEngine(method, self, place)

    def _answer(self, waiting: dict[int, Waiting]) -> None:
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
        engine = self._engine = self._engine or self._join()
        anyone = next(iter(asks.values()))  # whose batch goes through an empty lane as well, and nothing comes of it
        each = [asks.get(place, anyone) for place in range(self.count)]
        batches = [dict(ask.batch.items(True, True)) for ask in each]
        batch = {key: torch.stack([one[key] for one in batches]) for key in batches[0]}
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
            pairs = zip(learners(self._methods[place]), found, strict=True)
            own = [(parameter, gradient[place]) for parameter, gradient in pairs if gradient is not None]
            gradients = [laid_out_as(parameter, gradient) for parameter, gradient in own]
            value = KnownGradients.apply(values[place], gradients, *(parameter for parameter, _ in own))  # type: ignore[no-untyped-call]
            metrics, state = ({k: v.detach()[place] for k, v in part.items()} for part in (loss.metrics, loss.state))
            losses[place] = Loss(value, metrics, state)
        return losses

    def _join(self) -> StackedEngine:
        """Moves the networks of all into one memory; an empty lane gets another's, as a start."""
        anyone = next(iter(self._methods.values()))
        together = stacked([self._methods.get(place, anyone) for place in range(self.count)])
        for place, method in self._methods.items():
            pairs = zip(tensors(method), tensors(together), strict=True)
            views = {id(own): joined.detach()[place] for own, joined in pairs}
            method._apply(lambda tensor, views=views: views.get(id(tensor), tensor))  # type: ignore[no-untyped-call]
        return StackedEngine(together, self.count)


class LaneEngine(Engine):
    """One seed's steps, evaluated together with those of the others."""

    def __init__(self, method: Method, lanes: Lanes, place: int) -> None:
        super().__init__(method)
        self.lanes, self.place = lanes, place

    def run(self, updates: Update, first: int) -> None:
        request = Waiting(updates, first, [])
        self.lanes.turns.meet(self.place, request)
        for failure in request.failure:
            raise failure


def learners(method: Method) -> list[Tensor]:
    """The parameters that may get a gradient."""
    return [parameter for parameter in method.parameters() if parameter.requires_grad]


def tensors(method: Method) -> list[Tensor]:
    """Parameters and buffers."""
    return [*method.parameters(), *method.buffers()]


def _alike(asks: dict[int, Ask]) -> list[list[int]]:
    """Places whose steps are the same, on batches of one form."""
    groups: dict[Form, list[int]] = {}
    for place, ask in asks.items():
        groups.setdefault((ask.step.__name__, tuple(ask.batch["action"].shape)), []).append(place)
    return [*groups.values()]
