"""The reference policy π_ref: the best one so far, which fine-tuning stays close to, and may be held by."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn

from o2o_lightning.errors import at_least
from o2o_lightning.methods.method import Method
from o2o_lightning.methods.o2.evidence import Returns
from o2o_lightning.nn.targets import frozen_copy, hard_update


@dataclass(frozen=True)
class Reference:
    """When the reference policy π_ref becomes a copy of the current one.

    Attributes:
        mode: ``best``: at each evaluation whose score is the highest so far; ``trials``: at each that proves the actor
            better; until then π_ref is the policy that is evaluated, exported and handed on, and the actor a candidate;
            ``returns``: likewise, where training's own episodes prove it, without an evaluation; ``judged``: where
            fitted values do not contradict them; ``interval``: every ``period`` environment steps; ``frozen``: never
            (ablation).
        start: ``best``: the better of π_off and π_on (D14); ``aligned``: π_on; ``offline``: π_off. In mode ``trials``
            it is π_off, and π_on the first candidate; in ``returns`` and ``judged`` ``best`` is π_off until the first
            test, at which the actor need only be no worse.
        period: environment steps between two copies in mode ``interval``.
        threshold_scale: factor on the threshold's end; the official code quarters it in mode ``interval`` (D15).
    """

    mode: Literal["best", "trials", "returns", "judged", "interval", "frozen"] = "best"
    start: Literal["best", "aligned", "offline"] = "best"
    period: int = 1000
    threshold_scale: float = 1.0

    def __post_init__(self) -> None:
        at_least("--model.reference.period", self.period, 1)
        at_least("--model.reference.threshold_scale", self.threshold_scale, 0)


@dataclass(frozen=True)
class Trials:
    """How the actor proves itself in the reference's mode ``trials``: an evaluation is a trial.

    Its returns and those of π_ref are compared start state by start state, the mean difference in its standard errors.

    Attributes:
        confidence: standard errors that prove the actor better, or worse.
        confirmations: episodes of both, from other start states each time, that must prove it once more, together with
            the evaluation's.
        tolerance: share of π_ref's return that the actor may lose. Proved worse by more, it begins anew at π_ref.
        retreats: how often it moves half of the way back first, and is tried there; where it is not lost it goes on.
        ease: λ falls by this factor after a trial that the actor has not lost, and rises by it after one that it has.
        share: of the training episodes that π_ref plays, and not the actor, at first and after a trial that the actor
            has lost; one that it has not divides the odds by ``ease``, so that all of them stay all. O2PPO, which is
            on-policy, has none.
    """

    confidence: float = 1.0
    confirmations: int = 20
    tolerance: float = 0.05
    retreats: int = 2
    ease: float = 4.0
    share: float = 0.5

    def __post_init__(self) -> None:
        at_least("--model.trials.ease", self.ease, 1)
        at_least("--model.trials.retreats", self.retreats, 0)


class Referenced(Method):
    """A method that can stay close to a reference policy π_ref, the best one so far.

    Args:
        reference: when π_ref follows, ``--model.reference.mode`` and others.
        trials: how the actor proves itself, in mode ``trials``.
        returns: likewise, in modes ``returns`` and ``judged``.
    """

    shares_episodes: ClassVar[bool] = True  # whether π_ref may play some of the training episodes
    reference: Reference = Reference()
    trials: Trials = Trials()
    returns: Returns = Returns()

    @property
    def follows(self) -> bool:
        """Whether π_ref means anything to it."""
        raise NotImplementedError(f"{type(self).__name__}.follows")

    @property
    def held(self) -> bool:
        """Whether π_ref is what the run stands for, and the actor a candidate."""
        return self.follows and self.reference.mode == "trials"

    @property
    def gated(self) -> bool:
        """Whether π_ref is what the run stands for, and training's own returns say when the actor replaces it."""
        return self.follows and self.reference.mode in ("returns", "judged")

    @property
    def stands_for(self) -> str:  # type: ignore[override]
        return "reference_policy" if self.held or self.gated else "actor"

    @property
    def label(self) -> str:
        return self.name if self.follows else self.name.removeprefix("o2")

    def take_reference(self) -> None:
        """π_ref begins as the actor is; the phase says which policy is the better one. Where returns do, as π_off."""
        offline = self.gated and self.reference.start != "aligned"
        self.reference_policy = frozen_copy(self.offline_actor if offline else self.actor)
        self.register_buffer("reference_score", torch.tensor(-math.inf, dtype=torch.float64))
        self.reference_plays = False  # this training episode
        self.share = self.trials.share  # of them, as the trials have gone
        self.played: dict[str, list[float]] = {"actor": [], "reference": []}  # returns of the training episodes

    def become(self, actor: nn.Module) -> None:
        """The policy, and what follows it, are copies of ``actor`` from now on."""
        hard_update(self.actor, actor)

    @torch.no_grad()
    def retreat(self) -> None:
        """The policy moves half of the way back to π_ref, weight by weight; what follows it begins there."""
        for own, its in zip(self.actor.parameters(), self.reference_policy.parameters(), strict=True):
            own.lerp_(its, 0.5)
        self.become(self.actor)

    def after_trial(self, lost: bool) -> None:
        """What follows from a trial, beside where the actor begins anew: who plays the training episodes."""
        self.share = self.trials.share if lost else self.share / (self.share + self.trials.ease * (1.0 - self.share))

    def explorer(self) -> Any:
        return self.reference_policy if self.reference_plays else super().explorer()

    def before_step(self, step: int, last_return: float | None, generator: np.random.Generator) -> None:
        if step or not self.held:
            return
        if last_return is not None:
            self.played["reference" if self.reference_plays else "actor"].append(last_return)
        self.reference_plays = bool(generator.uniform() < self.share)

    def local_state(self) -> dict[str, Any]:
        """What this process needs to go on exactly, beside networks and buffers."""
        return {"reference_plays": self.reference_plays, "share": self.share, "played": self.played}

    def load_local_state(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`local_state`."""
        self.reference_plays, self.share, self.played = (state[name] for name in ("reference_plays", "share", "played"))
