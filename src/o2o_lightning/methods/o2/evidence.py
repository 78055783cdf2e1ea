"""What training's own returns, which cost nothing, say of the actor beside its reference policy."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from o2o_lightning.errors import at_least
from o2o_lightning.objectives.diagnostics import ONE_SIDED, standardized_gap

Finding = Literal["better", "even", "worse", "unknown"]


@dataclass(frozen=True)
class Returns:
    """How training episodes decide, in the reference's modes ``returns`` and ``judged``: no evaluation is needed.

    The mean return of the actor's last episodes is held against that of π_ref's, a one-sided test at 1.28 standard
    errors. No best is kept: what π_ref is held to is the mean of the very episodes that made it π_ref.

    Attributes:
        window: the actor's last episodes that count.
        least: episodes of either without which nothing is found. Until π_ref has them, it plays every second one.
        every: environment steps between two tests, which come at an episode's end.
        max_age: environment steps after which an actor that is neither better nor worse becomes π_ref as well.
        alarm: tests in a row that find the actor worse, which are a drop; it is reported, and with ``restore`` the
            actor begins anew at π_ref.
        judges: fitted values of ``judged``, each of its own draw of the held-out episodes.
        patience: episodes for which judges that contradict the returns can put off a swap.
    """

    window: int = 20
    least: int = 5
    every: int = 1000
    max_age: int = 30_000
    alarm: int = 3
    restore: bool = False
    judges: int = 4
    patience: int = 40

    def __post_init__(self) -> None:
        at_least("--model.returns.least", self.least, 2)
        at_least("--model.returns.window", self.window, self.least)
        for name in ("every", "max_age", "alarm", "judges", "patience"):
            at_least(f"--model.returns.{name}", getattr(self, name), 1)


@dataclass
class Evidence:
    """The returns so far, and what they have led to.

    Attributes:
        rule: by which they are read.
        tie: who becomes π_ref where the first test finds neither better: with ``True`` the actor, if its mean is at
            least as high.
        challenger, incumbent: returns of the actor's last episodes since the last swap, and of π_ref's.
        swapped_at: environment steps at the last swap.
        tested_at: at the last test.
        failures: tests in a row that found the actor worse.
        drops: how often that was a drop.
        contradicted: episodes since the judges first contradicted the returns; 0 where they don't.
        swaps: ``[environment steps, the actor's mean, π_ref's, gap]`` each.
    """

    rule: Returns
    tie: bool = False
    challenger: list[float] = field(default_factory=list)
    incumbent: list[float] = field(default_factory=list)
    swapped_at: int = 0
    tested_at: int = 0
    failures: int = 0
    drops: int = 0
    contradicted: int = 0
    swaps: list[list[float]] = field(default_factory=list)

    @property
    def reference_due(self) -> bool:
        """Whether π_ref needs more episodes."""
        return len(self.incumbent) < self.rule.least

    def add(self, episode_return: float, of_reference: bool) -> None:
        """Takes note of a training episode."""
        if of_reference:
            self.incumbent.append(episode_return)
        else:
            self.challenger = [*self.challenger, episode_return][-self.rule.window :]
            self.contradicted += self.contradicted > 0

    @property
    def gap(self) -> float:
        """By how many standard errors the actor is better; 0 where one of them has no episode."""
        return standardized_gap(self.challenger, self.incumbent) if self.challenger and self.incumbent else 0.0

    def finding(self) -> Finding:
        """What the returns say of the actor."""
        if min(len(self.challenger), len(self.incumbent)) < self.rule.least:
            return "unknown"
        gap = self.gap
        return "better" if gap > ONE_SIDED else "worse" if gap < -ONE_SIDED else "even"

    def passes(self, env_steps: int) -> bool:
        """Whether the returns alone would make the actor π_ref at this moment, which is a test."""
        found, self.tested_at = self.finding(), env_steps
        if found == "unknown":
            return False
        self.failures = self.failures + 1 if found == "worse" else 0
        aged = env_steps - self.swapped_at >= self.rule.max_age
        first, self.tie = self.tie, False
        return found == "better" or (found == "even" and (aged or (first and self.gap >= 0.0)))

    def dropped(self) -> bool:
        """Whether the actor has just been found worse for the last of ``alarm`` times in a row."""
        if self.failures < self.rule.alarm:
            return False
        self.failures, self.drops = 0, self.drops + 1
        return True

    def swap(self, env_steps: int) -> None:
        """The actor has become π_ref: what it is held to from now on is the mean of the window."""
        means = (sum(returns) / len(returns) for returns in (self.challenger, self.incumbent))
        self.swaps.append([env_steps, *means, self.gap])
        self.incumbent, self.challenger = self.challenger, []
        self.swapped_at, self.failures, self.contradicted = env_steps, 0, 0

    def forget(self) -> None:
        """The actor begins anew: what it returned says nothing any more."""
        self.challenger, self.failures, self.contradicted = [], 0, 0

    def overruled(self, contradict: bool) -> bool:
        """Whether judges that ``contradict`` keep a passing actor from becoming π_ref: for ``patience`` episodes."""
        if not contradict:
            self.contradicted = 0
            return False
        self.contradicted = max(self.contradicted, 1)
        return self.contradicted <= self.rule.patience

    def state(self) -> dict[str, Any]:
        """Tensors and primitives, for a run that goes on."""
        return {name: value for name, value in vars(self).items() if name != "rule"}

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state`."""
        vars(self).update(state)


def mean(returns: Sequence[float]) -> float | None:
    """Of the returns, None where there is none."""
    return sum(returns) / len(returns) if returns else None
