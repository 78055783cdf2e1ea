"""How a re-evaluation reaches its fixed point in fewer updates than its targets' rate alone would take."""

from typing import Literal

from o2o_lightning.errors import UserError, at_least
from o2o_lightning.methods.actor_critic import ActorCritic
from o2o_lightning.methods.method import Follow, Moment, Task, Updates
from o2o_lightning.nn.critics import Critics
from o2o_lightning.objectives.bellman import steady_value


class Hastened(ActorCritic):
    """A re-evaluation whose values may begin where the dataset's rewards put them, and whose targets may follow fast.

    With rate ρ values approach their fixed point as 1 − exp(−ρ(1 − γ)t): 0.05 takes a tenth of the updates of 0.005.
    What is slowest is the level of all values together, which the data can give; their order needs the updates.

    Args:
        initial_value: of new critics: ``zero``, the paper's; ``data``, what rewards and ends that come as in the
            dataset are worth, whatever the state.
        fast_polyak, fast_updates: ρ for so many updates, behind which it is ``polyak``.
    """

    initial_value: Literal["zero", "data"] = "zero"
    fast_polyak: float = 0.05
    fast_updates: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.fast_polyak <= 1.0:
            raise UserError(f"--model.fast_polyak {self.fast_polyak:g}: a rate above 0 and at most 1 is needed.")
        at_least("--model.fast_updates", self.fast_updates, 0)
        if self.initial_value == "data":
            self.needs = ("mean_reward",)  # type: ignore[misc]

    def begun(self, critic: Critics, task: Task) -> Critics:
        """A new ``critic`` at its initial value."""
        if self.initial_value == "zero" or not task.mean_reward:  # no reward is worth nothing, discounted or not
            return critic
        if self.discount * (1.0 - task.ending) == 1.0:
            raise UserError(
                "--model.initial_value data: with --model.discount 1 and no transition that terminates, rewards that "
                "go on are worth no finite value. Take a discount below 1, or zero."
            )
        return critic.raised(steady_value(task.mean_reward, task.ending, self.discount))

    def update(self, moment: Moment) -> Updates:
        yield self.critic_step
        rate = self.fast_polyak if moment.update < self.fast_updates else self.polyak
        yield Follow(self.target_critic, self.critic, rate)
