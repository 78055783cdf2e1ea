"""One update function: a method's steps in order, and who evaluates them."""

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from o2o_lightning.methods.method import Batch, Follow, Loss, Method, Moment, Noise, Step


class Ask(NamedTuple):
    """A step whose loss an update wants to descend."""

    step: Step
    batch: Batch
    noise: Noise


Update = Generator[Ask, Loss, None]  # what asks for the losses of an update, and descends each as it comes


class Engine:
    """Evaluates the steps of a method's updates as they are written; a subclass does so in another way.

    A loss is descended by whoever asked for it: the step after it, or a network that follows, sees what came of that.
    """

    shape: tuple[int, ...] = ()  # of a loss: one number, or one a seed

    def __init__(self, method: Method) -> None:
        self.method = method
        self._followers: dict[tuple[nn.Module, nn.Module], tuple[list[Tensor], list[Tensor]]] = {}

    def steps(self, moment: Moment) -> Iterator[Step]:
        """The steps of one update, each to be descended before the next is asked for; networks follow on the way."""
        for item in self.method.update(moment):
            if isinstance(item, Follow):
                self.follow(item)
            else:
                yield item

    def losses(self, moment: Moment, batch: Batch, noise: Noise) -> Iterator[Loss]:
        """Their losses."""
        for step in self.steps(moment):
            loss = self.evaluate(step, batch, noise)
            yield loss
            self.settle(loss)

    @torch.no_grad()
    def settle(self, loss: Loss) -> None:
        """Gives the method's scalars the values that a descended ``loss`` has for them."""
        for name, value in loss.state.items():
            getattr(self.method, name).copy_(value)

    def run(self, updates: Update, first: int) -> None:
        """Makes updates, of which number ``first`` is the first."""
        try:
            ask = next(updates)
            while True:
                ask = updates.send(self.evaluate(*ask))
        except StopIteration:
            pass

    def evaluate(self, step: Step, batch: Batch, noise: Noise) -> Loss:
        """The loss of one step."""
        return step(batch, noise)

    @torch.no_grad()
    def follow(self, item: Follow) -> None:
        """``target ← (1 − rate)·target + rate·source``, in place; in one kernel call, where the rate is a number."""
        pair = (item.target, item.source)
        if pair not in self._followers:  # listing the parameters takes longer than moving them
            self._followers[pair] = (list(item.target.parameters()), list(item.source.parameters()))
        if not isinstance(item.rate, Tensor):
            torch._foreach_lerp_(*self._followers[pair], item.rate)
            return
        for target, source in zip(*self._followers[pair], strict=True):  # a rate for each of stacked seeds, or one
            target.lerp_(source, item.rate.to(target.dtype).view(-1, *[1] * (target.dim() - 1)))

    def mean(self, metric: Tensor) -> Tensor:
        """A metric's mean, of the shape of a loss."""
        return metric.mean()

    def parts(self, tensor: Tensor) -> Sequence[Tensor]:
        """What of it is each seed's."""
        return (tensor,)

    def joined(self, noise: Any) -> Mapping[str, Tensor]:
        """The noise of K updates, ``[K, …]`` by name; of stacked seeds, where what each has of it is given."""
        return noise  # type: ignore[no-any-return]


def one_after_another(updates: Iterable[Update]) -> Update:
    """Several updates as one."""
    for update in updates:
        yield from update
