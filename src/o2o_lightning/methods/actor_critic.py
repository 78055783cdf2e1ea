"""What the rules of an actor and its action-value critics share."""

from typing import Any

from o2o_lightning.methods.method import Batch, Learners, Method, Source, Task
from o2o_lightning.nn.critics import Critics
from o2o_lightning.nn.targets import frozen_copy, hard_update

# phases whose Adam moments a rule keeps that is the same offline and online
GOES_ON = ("offline", "reevaluate", "align")
TRANSITION = ("observation", "action", "reward", ("next", "observation"), ("next", "terminated"))


def part(batch: Batch, number: int, count: int) -> Batch:
    """Transitions of one of ``count`` equal parts of a batch; what is left over is in none."""
    size = len(batch["reward"]) // count
    return {key: batch[key][number * size : (number + 1) * size] for key in TRANSITION}


class ActorCritic(Method):
    """An actor, critics, their targets, and the offline policy π_off that everything is anchored to.

    The target and π_off never receive a gradient. A subclass says what is made where there is no checkpoint.
    """

    def build(self, task: Task, source: Source | None = None) -> None:
        if source is None:
            self.take(*self.fresh(task))
            return
        self.take(source.build_actor(), source.build_critic())
        hard_update(self.offline_actor, source.build_actor("offline_actor"))
        if source.phase != "align":  # after alignment the targets start as copies, else the old critic comes back
            self.take_targets(source)

    def fresh(self, task: Task) -> tuple[Any, Critics]:
        """A new actor, and new critics."""
        raise NotImplementedError(f"{type(self).__name__}.fresh")

    def take(self, actor: Any, critic: Critics) -> None:
        """Makes ``actor`` and ``critic`` its own, with copies of them as π_off and as target."""
        self.actor: Any = actor
        self.offline_actor: Any = frozen_copy(actor)
        self.critic, self.target_critic = critic, frozen_copy(critic)

    def take_targets(self, source: Source) -> None:
        """Makes the targets of ``source`` its own."""
        source.load(self.target_critic, "target_critic")

    def learners(self) -> Learners:
        return {"actor": (self.actor, self.actor_lr), "critic": (self.critic, self.critic_lr)}
