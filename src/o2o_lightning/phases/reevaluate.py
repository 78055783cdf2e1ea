"""Policy re-evaluation: a fresh, optimistic critic of the offline policy, by the online evaluation rule."""

from typing import Any, ClassVar

from o2o_lightning.checkpoint.handover import POLICIES
from o2o_lightning.methods.actor_critic import ActorCritic
from o2o_lightning.methods.method import Method, Task
from o2o_lightning.phases.converging import Converging
from o2o_lightning.phases.earned import Play, against, evaluated, visits
from o2o_lightning.policies.history import player_of
from o2o_lightning.replay.store import owners
from o2o_lightning.replay.table import TERMINATED, TRUNCATED


class Reevaluate(Converging):
    """Fits a critic, from random weights, to the frozen policy π_off; hands on both.

    Args:
        method, init_from, options: as in :class:`o2o_lightning.phases.converging.Converging`.
        earned: at the end π_off plays the episodes of an evaluation, and the critic's values of what it did are held
            against the discounted returns from there.
    """

    phase: ClassVar[str] = "reevaluate"
    accepts: ClassVar[tuple[str, ...]] = POLICIES
    evaluates: ClassVar[bool] = False

    def __init__(self, method: Method, init_from: str, earned: bool = True, **options: Any) -> None:
        super().__init__(method, init_from, **options)
        self.asks, self.earned = earned, dict[str, float]()

    def task(self) -> Task:
        task, store = super().task(), self.data.store
        if store is None or "mean_reward" not in self.method.needs:
            return task
        rows = slice(None) if store.td_rows is None else store.td_rows
        reward, ending = (column[rows].double().mean() for column in (store["reward"], store[TERMINATED]))
        return task._replace(mean_reward=float(self.data.rewards(reward)), ending=float(ending))

    def on_fit_start(self) -> None:
        store = self.data.store
        if store is not None and "tail" in self.method.needs:
            last = store["next", "observation"][store.episodes[:, 1] - 1]
            rows = self.data.rewards(store["reward"]), store[TERMINATED], store[TRUNCATED], store.known
            labels = self.method.take_tails(self.normalizer(last).to(self.device), *rows)
            for name, column in {**labels, "tail": owners(store.episodes).float()}.items():
                store.attach(name, column)
        super().on_fit_start()

    def on_train_end(self) -> None:
        super().on_train_end()
        method, data = self.method, self.data
        if self.asks and data.env_id is not None and data.eval_episodes and isinstance(method, ActorCritic):
            play = Play(player_of(self.policy(), self.normalizer))
            self.evaluate_player(play)
            visited = visits(play, data, method.discount)
            self.earned = against(evaluated(method.critic, self.normalizer, visited), visited)

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), **({"earned": self.earned} if self.earned else {})}

    def conclusion(self) -> str | None:
        line, found = super().conclusion(), self.earned
        if not found:
            return line
        held = f"the critic says {found['value']:.4g} of what π_off does, which earns {found['truth']:.4g}, discounted"
        return f"{line or self.phase + ':'}{'; ' if line else ' '}{held}"
