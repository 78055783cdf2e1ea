"""What the alignments of O2TD3 and O2SAC share: an actor that hunts the critic's errors, and when it does."""

from o2o_lightning.errors import at_least
from o2o_lightning.methods.actor_critic import ActorCritic
from o2o_lightning.methods.method import Follow, Moment, Updates


class Hunting(ActorCritic):
    """An alignment whose actor is an adversary, and need not be what goes online.

    Args:
        actor_after: updates before the actor moves; until then critics are aligned around π_off alone.
        restart_every: updates between two restarts of the actor at π_off, from where it hunts anew; 0: none.
    """

    actor_after: int = 0
    restart_every: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("actor_after", "restart_every"):
            at_least(f"--model.{name}", getattr(self, name), 0)

    def rates(self, moment: Moment) -> dict[str, float]:
        return {"actor": 0.0 if moment.update < self.actor_after else self.actor_lr} if self.actor_after else {}

    def update(self, moment: Moment) -> Updates:
        if self.restart_every and moment.update and moment.update % self.restart_every == 0:
            yield Follow(self.actor, self.offline_actor, 1.0)
        yield self.step
