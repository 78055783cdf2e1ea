"""The gate: π_ref follows the actor where training's own returns prove it better, and needs no evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from o2o_lightning.methods.o2.evidence import Evidence, mean
from o2o_lightning.methods.o2.reference import Referenced
from o2o_lightning.objectives.diagnostics import quadratic_features
from o2o_lightning.objectives.judges import bounds, differences, judges
from o2o_lightning.replay.interaction import Interaction
from o2o_lightning.replay.store import owners
from o2o_lightning.replay.table import TERMINATED, TRUNCATED

if TYPE_CHECKING:
    from o2o_lightning.phases.online import Online

HELD_OUT = 0.2  # of the dataset's episodes, which judges are fitted to and the actor never learns from
ROWS = 20_000  # of either, that judges are fitted to
OUTLYING = 10.0  # normalised observations beyond it are clipped


class Gate:
    """Hears of each training episode's end, and makes the actor π_ref when it has proved itself.

    In mode ``judged`` values of π_ref, fitted to held-out episodes and what was seen online, may put a swap off
    where all they know is against it; they decide nothing alone, and no network learns from them.
    """

    def __init__(self, phase: Online) -> None:
        self.phase = phase
        self.evidence: Evidence | None = None
        self.held_out: Tensor | None = None

    @property
    def method(self) -> Referenced:
        return cast(Referenced, self.phase.method)

    def begin(self) -> None:
        """Before the first step. Of a run that goes on, :meth:`load_state` comes later."""
        method = self.method
        self.evidence = Evidence(method.returns, tie=method.reference.start == "best")
        method.reference_plays = method.shares_episodes
        store = self.phase.data.store
        if method.reference.mode == "judged":
            assert store is not None  # Online.setup
            self.held_out = store.hold_out(HELD_OUT)

    def ended(self, interaction: Interaction) -> None:
        """A training episode has ended, if one has: at most one test comes of it."""
        if interaction.episode_length or interaction.last_return is None:
            return
        evidence, phase, method = self.known, self.phase, self.method
        of_reference = method.reference_plays if method.shares_episodes else evidence.reference_due
        evidence.add(interaction.last_return, of_reference)
        method.reference_plays = method.shares_episodes and evidence.reference_due and not of_reference
        if phase.env_steps - evidence.tested_at >= method.returns.every and not of_reference:
            self.test()

    def test(self) -> None:
        """Holds the actor against π_ref."""
        evidence, phase, method = self.known, self.phase, self.method
        row = {"reference_gap": evidence.gap, "reference_age": float(phase.env_steps - evidence.swapped_at)}
        if evidence.passes(phase.env_steps):
            if method.reference.mode == "judged":
                row["judge_lower"], row["judge_upper"] = limits = self.judged()
                if evidence.overruled(limits[1] < 0.0):
                    phase.log_now(row)
                    return
            evidence.swap(phase.env_steps)
            phase.set_reference(method.actor, cast(float, mean(evidence.incumbent)))
        elif evidence.dropped():
            phase.log_now({"reference_drops": float(evidence.drops)})
            if method.returns.restore:
                method.become(method.reference_policy)
                phase.forget_moments("actor")
                evidence.forget()
        phase.log_now({**row, "reference_swaps": float(len(evidence.swaps))})

    @property
    def known(self) -> Evidence:
        assert self.evidence is not None
        return self.evidence

    @torch.no_grad()
    def judged(self) -> tuple[float, float]:
        """Limits of what the actor's own states say of it: below 0 it is worse, by values of π_ref."""
        phase, method = self.phase, self.method
        rows, episode = self._rows()
        batch = phase.data.prepare(rows, phase.device)
        reference = method.reference_policy
        following = _features(batch["next", "observation"], reference)
        following *= 1.0 - batch["next", "terminated"].cpu().double().unsqueeze(1)
        known = _features(batch["observation"], batch["action"])
        discount = float(cast(Any, method).discount)
        weights = judges(known, following, batch["reward"].cpu().double(), episode, discount, method.returns.judges)
        seen, own = self._newest(method.returns.window)
        observation = phase.data.prepare(seen, phase.device)["observation"]
        ours, theirs = (_features(observation, policy) for policy in (method.actor, reference))
        return bounds(differences(ours, theirs, weights, own))

    def _rows(self) -> tuple[Any, Tensor]:
        """Held-out transitions of the dataset and the newest ones seen online, and each one's episode."""
        store = self.phase.data.store
        assert store is not None and self.held_out is not None
        rows = self.held_out[:: -(-len(self.held_out) // ROWS)]
        seen, own = self._newest(None)
        number = torch.cat((owners(store.episodes)[rows], own + len(store.episodes)))
        known = ("observation", "action", "reward", ("next", "observation"), TERMINATED, TRUNCATED)
        both = torch.cat([table.select(*known) for table in (store.gather(rows), seen)])
        _, episode = torch.unique(number, return_inverse=True)
        return both, episode

    def _newest(self, episodes: int | None) -> tuple[Any, Tensor]:
        """Transitions of the last ended ``episodes`` seen online, or of all within limits, and each one's episode."""
        ring = self.phase.interacting.interaction.buffer
        count = min(len(ring), ROWS)
        rows = (torch.arange(ring.cursor - count, ring.cursor)) % ring.capacity
        seen = ring.gather(rows)
        ended = (seen[TERMINATED] + seen[TRUNCATED]) > 0
        number = ended.cumsum(0) - ended.long()
        if episodes is not None:
            kept = number > int(number[-1]) - episodes
            seen, number = seen[kept], number[kept]
        return seen, number - number[0]

    def facts(self) -> dict[str, Any]:
        """What the summary says: every swap with its evidence, drops, and what either policy returned last."""
        evidence = self.evidence
        if evidence is None:
            return {}
        last = {"actor": mean(evidence.challenger), "reference": mean(evidence.incumbent)}
        return {"returns_gate": {"swaps": evidence.swaps, "drops": evidence.drops, "last": last}}

    def state(self) -> dict[str, Any]:
        return {"evidence": self.known.state(), "method": self.method.local_state()}

    def load_state(self, state: dict[str, Any]) -> None:
        self.known.load_state(state["evidence"])
        self.method.load_local_state(state["method"])


def _features(observation: Tensor, action: Any) -> Tensor:
    """``[N, F]`` of states and actions, or a policy's own in them; on the CPU, in double precision."""
    chosen = action if isinstance(action, Tensor) else action.mode(observation)
    return quadratic_features(torch.cat((observation.clamp(-OUTLYING, OUTLYING), chosen), 1).cpu().double())
