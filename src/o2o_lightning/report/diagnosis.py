"""How far policy, critic and data are apart, and what that means for fine-tuning."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from o2o_lightning.checkpoint.handover import Handover
from o2o_lightning.data.module import OfflineData
from o2o_lightning.envs.episodes import Evaluation, FloatArray, Player
from o2o_lightning.envs.scores import reference_scores
from o2o_lightning.nn.actor import Actor
from o2o_lightning.nn.critics import Critics
from o2o_lightning.objectives.bellman import least
from o2o_lightning.objectives.diagnostics import (
    Alignment,
    anchor_agreement,
    fitted_weights,
    kept_share,
    quadratic_features,
    support_distance,
)
from o2o_lightning.phases.earned import STATES, Play, Visits, against, evaluated, visits

OUTLYING = 5.0  # deviations of an observation, at which features end
DATA_ROWS, NEIGHBOURS = 20_000, 10
PERTURBED, SPREAD = 16, 0.5  # actions around the policy's own, and their σ
SHIFT, SHIFTS = 0.1, 2  # each action value is off by so much, in so many directions
LOST, SAFE = 0.5, 0.9  # shares of a policy's return above the worst: less is lost, more is kept
OFF = 0.5  # a critic is wrong by more than that share of the truth
BEARS = 0.5  # a policy that keeps less of its return under SHIFT is fragile


@dataclass
class Shifted(Player):
    """A policy whose actions are off by ±:data:`SHIFT`, each value in a direction of its own."""

    player: Player
    direction: FloatArray

    def reset(self, episodes: int) -> None:
        self.player.reset(episodes)

    def act(self, observation: FloatArray, running: Sequence[int] = ()) -> FloatArray:
        return np.clip(self.player.act(observation, running) + SHIFT * self.direction, -1.0, 1.0).astype(np.float32)

    def observe(self, reward: FloatArray, running: Sequence[int]) -> None:
        self.player.observe(reward, running)


def measure_policy(player: Player, data: OfflineData, discount: float) -> tuple[Evaluation, Visits, dict[str, Any]]:
    """What the policy is worth, what it bears, and whether the data supports what it does where it goes."""
    play = Play(player)
    result = data.evaluate(play)
    visited = visits(play, data, discount)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (SHIFTS, visited.action.shape[1])).astype(np.float32)
    shifted = float(np.mean([data.evaluate(Shifted(player, sign)).return_mean for sign in signs]))
    worst = worst_return(data)
    facts = {
        "return_mean": result.return_mean, "return_std": float(np.std(result.returns)), "score": result.score,
        "episodes": len(result.returns), "worst": worst, "shifted_return": shifted,
        "bears": kept_share(shifted, result.return_mean, worst), **_support(visited, data),
    }  # fmt: skip
    return result, visited, facts


def worst_return(data: OfflineData) -> float:
    """Of random actions where that is known, else the dataset's least."""
    assert data.env_id is not None
    reference = reference_scores(data.env_id)
    return data.manifest()["return_min"] or 0.0 if reference is None else reference[0]


def measure_critic(critic: Critics, source: Handover, visited: Visits) -> dict[str, Any]:
    """What the critic says of the policy, against what the policy earns; and of other actions around the policy's."""
    observation = source.build_normalizer()(visited.observation)
    value = evaluated(critic, source.build_normalizer(), visited)
    generator = torch.Generator().manual_seed(0)
    noise = SPREAD * torch.randn(PERTURBED, *visited.action.shape, generator=generator)
    with torch.no_grad():
        others = torch.stack([least(critic(observation, (visited.action + n).clamp(-1.0, 1.0))) for n in noise])
    agreement: Alignment = anchor_agreement(value, others)
    return {
        **against(value, visited),
        "rank": float((others < value).float().mean()),
        "highest": float(agreement.share),
        "gap": float(agreement.gap_mean),
    }


def measure_fitted(
    policy: Actor, source: Handover, data: OfflineData, visited: Visits, discount: float
) -> dict[str, float]:
    """What the dataset itself says of the policy: fitted Q evaluation with quadratic features, solved at once."""
    store, normalizer = data.needed("the policy is evaluated on it"), source.build_normalizer()
    rows = store.sample_rows(DATA_ROWS, torch.Generator().manual_seed(0))
    batch = data.prepare(store.gather(rows), torch.device("cpu"))

    def features(observation: Tensor, action: Tensor) -> Tensor:
        return quadratic_features(torch.cat((observation.clamp(-OUTLYING, OUTLYING), action), 1).double())

    with torch.no_grad():
        following = features(batch["next", "observation"], policy.mode(batch["next", "observation"]))
    following *= 1.0 - batch["next", "terminated"].double().unsqueeze(1)
    weights = fitted_weights(
        features(batch["observation"], batch["action"]), following, batch["reward"].double(), discount
    )
    return against((features(normalizer(visited.observation), visited.action) @ weights).float(), visited)


def _support(visited: Visits, data: OfflineData) -> dict[str, float]:
    """Median distances of the policy's states and actions to the dataset's, and those within the dataset itself."""
    store = data.needed("the policy is held against its states and actions")
    rows = torch.randperm(len(store), generator=torch.Generator().manual_seed(0))[: DATA_ROWS + STATES]
    batch, held = store.gather(rows), min(STATES, len(rows) // 2)
    unit = batch["observation"].std(0).clamp(min=1e-6)
    states, actions = batch["observation"] / unit, batch["action"]
    pairs = {"policy": (visited.observation / unit, visited.action), "data": (states[:held], actions[:held])}
    near = (states[held:], actions[held:], min(NEIGHBOURS, len(rows) - held))
    found: dict[str, float] = {}
    for name, (state, action) in pairs.items():
        apart, beside = support_distance(state, action, *near)
        found |= {f"{name}_state_distance": float(apart.median()), f"{name}_action_distance": float(beside.median())}
    return found


@dataclass(frozen=True)
class Verdict:
    """What to do, and why.

    Attributes:
        direct: what direct fine-tuning will make of the policy: ``lost``, ``dips``, ``safe``; ``holds``, at the
            hand-over, of an aligned one; ``refused`` without a critic; ``unknown`` where it can't be rehearsed.
        phases: that are needed before fine-tuning.
        constraint: whether fine-tuning needs it.
        lines: the reasons.
    """

    direct: str
    phases: list[str]
    constraint: bool
    lines: list[str]


OUTCOMES = {
    "lost": "direct fine-tuning will lose the policy: the same updates on the dataset alone leave {kept:.0%} of it",
    "dips": "direct fine-tuning will cost some of the policy at first: a rehearsal on the dataset leaves {kept:.0%}",
    "safe": "direct fine-tuning is safe: a rehearsal on the dataset leaves {kept:.0%}",
    "holds": "the hand-over is safe: a rehearsal leaves {kept:.0%}. Later, without the constraint, it may be lost",
    "refused": "there is no critic to fine-tune with directly",
    "unknown": "direct fine-tuning can't be rehearsed: only TD3's and SAC's policies have a rule that learns from data",
}


def outcome(kept: float) -> str:
    """By the share of a policy that is left."""
    return "lost" if kept < LOST else "dips" if kept < SAFE else "safe"


def verdict(facts: dict[str, Any]) -> Verdict:
    """What follows from the facts of ``o2o diagnose``: of ``critic`` and ``rehearsal`` each may be None."""
    policy, critic, rehearsal = facts["policy"], facts["critic"], facts["rehearsal"]
    direct = outcome(rehearsal["kept"]) if rehearsal else "unknown" if critic or facts["own_critic"] else "refused"
    if facts["phase"] == "align" and direct == "safe":
        direct = "holds"
    lines, phases = [OUTCOMES[direct].format(**(rehearsal or {}))], []
    if critic is None:
        phases.append("reevaluate")
        lines.append("re-evaluate: the checkpoint has no action-value critic")
    elif direct not in ("safe", "holds") and critic["error"] > OFF:
        phases.append("reevaluate")
        lines.append(f"re-evaluate: the critic is off by {critic['error']:.0%} of what the policy earns")
    if direct not in ("safe", "holds"):
        phases.append("align")
        shown = "actions beside the policy's own look better to the critic than they are"
        lines.append(f"align: {shown if rehearsal else 'nothing has shown that critic and policy agree'}")
    if direct != "safe" and policy["bears"] < BEARS:
        lines.append(f"tight thresholds (tier=expert): actions off by {SHIFT} leave {policy['bears']:.0%} of it")
    return Verdict(direct, phases, direct != "safe", lines)


def rehearsed(
    before: Evaluation, after: Evaluation, critic: Critics, actor: Any, source: Handover, visited: Visits,
    data: OfflineData,
) -> dict[str, Any]:  # fmt: skip
    """What a rehearsal has made of a policy: what its critic promised of that, and what it is worth."""
    observation = source.build_normalizer()(visited.observation)
    with torch.no_grad():
        action = actor.mode(observation)
        gain = least(critic(observation, action)) - least(critic(observation, visited.action))
    return {
        "return_mean": after.return_mean, "score": after.score,
        "kept": kept_share(after.return_mean, before.return_mean, worst_return(data)),
        "moved": float((action - visited.action).square().mean().sqrt()),
        "promised": float(gain.mean()),
    }  # fmt: skip
