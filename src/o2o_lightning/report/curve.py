"""Learning curves as pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from o2o_lightning.envs.scores import score_or_return

Curve = Sequence[tuple[float, float, float | None]]


def plot_curves(curves: Mapping[str, Curve], target: Path, baseline: float | None, title: str, unit: str) -> None:
    """One line a method over environment steps, the offline policy's level dashed, as a PNG; curves as in summaries."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    if baseline is not None:
        axes.axhline(baseline, color="0.5", linestyle="--", linewidth=1, label="offline policy")
    for name, curve in curves.items():
        values = [score_or_return(score, return_) for _, return_, score in curve]
        axes.plot([step for step, _, _ in curve], values, marker="o", markersize=3, linewidth=1.8, label=name)
    axes.set(xlabel="environment steps", ylabel=unit, title=title)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.savefig(target, dpi=130)
    pyplot.close(figure)
