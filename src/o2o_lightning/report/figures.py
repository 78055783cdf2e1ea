"""Pictures fit for a talk: learning curves with their bands, the hand-over, and methods over several datasets."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from o2o_lightning.report.groups import Group
from o2o_lightning.report.statistics import Array, interval, iqm

# Okabe and Ito's colours, which colour-blind people tell apart, and a marker each for a print without colour
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "os^Dv<>"
STYLE = {
    "font.size": 13, "axes.titlesize": 14, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.alpha": 0.25, "legend.frameon": False, "lines.linewidth": 2.2, "lines.markersize": 5, "pdf.fonttype": 42,
}  # fmt: skip
HANDOVER = {
    "offline": r"$\pi_\mathrm{off}$",
    "aligned": r"$\pi_\mathrm{on}$",
    "lowest_early": "lowest early",
    "final": "final",
}


def unit(groups: Sequence[Group]) -> str:
    """What the numbers are."""
    return "D4RL score" if all(group.scored for group in groups) else "return"


def curves(groups: Sequence[Group], target: Path) -> None:
    """Interquartile means (of fewer than four seeds, means) over the steps; π_off dashed, the warm-up shaded."""
    with _drawing(target, (8, 4.8)) as axes:
        for number, group in enumerate(groups):
            value, low, high = group.band
            look, seeds = _look(number), f"{len(group.runs)} seed" + "s" * (len(group.runs) > 1)
            few = {"markevery": max(len(value) // 12, 1)}
            axes.plot(group.clock, value, label=f"{group.label} ({seeds})", **look, **few)
            axes.fill_between(group.clock, low, high, color=look["color"], alpha=0.2, linewidth=0)
        offline = np.concatenate([group.column("offline") for group in groups])
        if not np.isnan(offline).all():
            axes.axhline(
                np.nanmean(offline), color="0.35", ls="--", lw=1.5, label=f"offline policy {HANDOVER['offline']}"
            )
        if warmup := max(run.warmup for group in groups for run in group.runs):
            axes.axvspan(0, warmup, color="0.5", alpha=0.15, linewidth=0, label="warm-up, no updates")
        most = max(len(group.runs) for group in groups)
        what = f" ({'IQM' if most > 3 else 'mean'}, 95 % interval)" if most > 1 else ""
        axes.set(xlabel="environment steps" if groups[0].online else "gradient updates", ylabel=unit(groups) + what)
        axes.set_title(groups[0].title)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.figure.legend(loc="outside lower center", ncols=2)


def handover(groups: Sequence[Group], target: Path) -> None:
    """From π_off over π_on and the lowest early evaluation to the end, a line a method; small dots are the runs."""
    with _drawing(target, (8, 4.8)) as axes:
        for number, group in enumerate(groups):
            found, look = group.iqm, _look(number)
            places = np.arange(len(HANDOVER)) + 0.06 * (number - (len(groups) - 1) / 2)
            value, low, high = np.array([found[name] for name in HANDOVER]).T
            known = ~np.isnan(value)
            axes.plot(places[known], value[known], label=group.label, **look)
            bars = np.nan_to_num(np.stack([value - low, high - value]))[:, known]
            axes.errorbar(places[known], value[known], yerr=bars, fmt="none", ecolor=look["color"], capsize=4)
            for place, name in zip(places, HANDOVER, strict=True):
                column = group.column(name)
                axes.scatter(np.full(len(column), place), column, color=look["color"], alpha=0.45, s=14, linewidth=0)
        axes.set_xticks(range(len(HANDOVER)), [*HANDOVER.values()])
        axes.set(ylabel=unit(groups), title=f"The hand-over: {groups[0].task}")
        axes.figure.legend(loc="outside lower center", ncols=2)


def over_datasets(methods: Mapping[str, Sequence[Group]], target: Path) -> None:
    """Interquartile mean of the final scores of all runs on all datasets, with stratified bootstrap intervals."""
    with _drawing(target, (8, 1.4 + 0.7 * len(methods))) as axes:
        for number, groups in enumerate(methods.values()):
            value, low, high = final(groups)
            colour = _look(number)["color"]
            axes.plot([low, high], [number, number], color=colour, linewidth=9, alpha=0.35, solid_capstyle="butt")
            axes.plot([value], [number], "|", color=colour, markersize=20, markeredgewidth=3)
            axes.annotate(f"{value:.1f}", (value, number), (0, 14), textcoords="offset points", ha="center")
        axes.set_yticks(range(len(methods)), [f"{name} ({len(groups)} datasets)" for name, groups in methods.items()])
        axes.set_ylim(len(methods) - 0.4, -0.6)
        axes.set(xlabel="D4RL score at the end, IQM", title="Over all datasets")


def final(groups: Sequence[Group]) -> Array:
    """Interquartile mean of the final scores of one method on several datasets, and its interval: ``[3]``."""
    return np.asarray(interval(iqm, [group.column("final")[:, None] for group in groups])[:, 0])


def _look(number: int) -> dict[str, str]:
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}


@contextmanager
def _drawing(target: Path, size: tuple[float, float]) -> Iterator[Any]:
    """Axes whose picture is ``target`` as a PNG and a PDF; no window system is asked for."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=size, layout="constrained")
        yield figure.add_subplot()
        figure.savefig(target.with_suffix(".png"), dpi=150)
        figure.savefig(target.with_suffix(".pdf"), metadata={"CreationDate": None})
