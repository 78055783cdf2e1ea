"""What came of a run, in a few lines: the scores on the way, how trials ended, and the policy to take."""

from pathlib import Path
from typing import Any

from o2o_lightning.checkpoint.run import policy_to_take, read_summary
from o2o_lightning.report.page import duration

WAY = {"offline": "π_off", "aligned": "π_on", "lowest_early": "lowest early", "best": "best", "final": "final"}


def outcome(run_dir: Path) -> list[str]:
    """Lines on the last phase of ``run_dir``, which has ended."""
    summary = read_summary(run_dir)
    score, took = summary["score"], duration(summary["seconds"])
    way = " → ".join(f"{name} {score[key]:.1f}" for key, name in WAY.items() if key in score)
    spent = f"{summary['env_steps']:,} environment steps, " if summary["env_steps"] else ""
    scored = any(point[2] is not None for point in score["curve"])
    lines = [f"{way}{' (D4RL score)' if scored else ' (return)'}; {spent}{took}" if way else took]
    if trials := summary.get("trials"):
        lines.append(_trials(trials))
    if gate := summary.get("returns_gate"):
        lines.append(_gate(gate))
    return [*lines, f"the policy to take: {policy_to_take(run_dir / summary['phase'])}{_unless_worse(score)}"]


def _trials(trials: dict[str, Any]) -> str:
    """How the actor's trials ended, and what the training episodes returned that it played, and π_ref."""
    played = ", ".join(
        f"{found['episodes']} of {name} returned {found['return_mean']:.1f}"
        for name, found in (("the actor's", trials["played"]["actor"]), ("π_ref's", trials["played"]["reference"]))
        if found["episodes"]
    )
    ended = f"trials of the actor: {trials['won']} won, {trials['lost']} lost, {trials['neither']} undecided"
    return f"{ended}; training episodes: {played}" if played else ended


def _gate(gate: dict[str, Any]) -> str:
    """When training's returns made the actor the reference policy."""
    swaps, drops = gate["swaps"], gate["drops"]
    became = (
        f"the actor became π_ref {len(swaps)} times, last at step {swaps[-1][0]:,.0f}"
        if swaps
        else ("no return of the actor's proved it better: π_ref is what it began as")
    )
    return f"{became}; {drops} drops" if drops else became


def _unless_worse(score: dict[str, Any]) -> str:
    worse = score.get("best", 0.0) < score.get("offline", score.get("best", 0.0))
    return "; π_off scored higher, and is in it too: --model.policy offline" if worse else ""
