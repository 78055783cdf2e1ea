"""Tables and figures of the paper, ours beside its own."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

import numpy as np

from o2o_lightning.report.groups import Group
from o2o_lightning.report.page import Bullets, Heading, Table, Text, markdown
from o2o_lightning.report.runs import Run

Place = tuple[str, str]  # a dataset and an arm


@dataclass(frozen=True)
class Result:
    """A table or figure.

    Attributes:
        shows: what it is, and says: what the paper concludes, where it prints no numbers.
        datasets: by name.
        arms: the steps that are shown, by what they are called.
        cell: how a step's numbers are written.
        paper: the paper's numbers in the order of the arms, by dataset, and their ``total``.
        notes: where we depart from it.
    """

    shows: str
    datasets: list[str]
    arms: dict[str, str]
    says: str = ""
    cell: str = "{offline:.1f} → {final:.1f}, lowest early {lowest_early:.1f}"
    paper: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def rows_beside(
    result: Result, datasets: Sequence[str], found: Mapping[Place, Group], sources: Mapping[Place, Sequence[Run]]
) -> list[dict[str, str]]:
    """A row for each dataset, and one for the total where the paper has it, of all: our numbers over the paper's.

    Args: the runs that there are, and the runs of the offline policies that these came from.
    """
    values = {place: numbers(group, sources[place]) for place, group in found.items()}
    for arm in result.arms if {*datasets} == {*result.datasets} else ():
        values["total", arm] = _sum([values.get((dataset, arm), {}) for dataset in datasets])
    rows = []
    for dataset in [*datasets, *(["total"] if "total" in result.paper else [])]:
        paper = dict(zip(result.arms, result.paper.get(dataset, ()), strict=False))
        ours = {arm: _cell(result.cell, values.get((dataset, arm), {})) for arm in result.arms}
        cells = {arm: f"{text}\n{paper.get(arm, '–')}" for arm, text in ours.items()}
        rows.append({"dataset": f"{dataset}\nthe paper's", **cells})
    return rows


def tall(rows: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """The same with a row for each arm, for a terminal that has no room for so many side by side."""
    return [
        {
            "dataset": row["dataset"].split("\n")[0],
            "arm": arm,
            **dict(zip(("ours", "paper"), cell.split("\n"), strict=True)),
        }
        for row in rows
        for arm, cell in row.items()
        if arm != "dataset"
    ]


def written(result: Result, rows: Sequence[Mapping[str, str]], notes: Sequence[str]) -> str:
    """The same as Markdown."""
    table = Table([*rows[0]], [[cell.replace("\n", " / ") for cell in row.values()] for row in rows])
    return markdown([Heading(result.shows, 1), Text(result.says or "Ours / the paper's."), table, Bullets(notes)])


def numbers(group: Group, sources: Sequence[Run]) -> dict[str, float]:
    """Means over the seeds of what a cell can have; what is not known is left out."""
    found = {name: float(group.column(name).mean()) for name in ("aligned", "lowest_early", "best")}
    final = _last(group.runs)
    found |= {"offline": fmean(_last(sources)), "final": fmean(final), "hours": group.cost("seconds") / 3600}
    found["gain"] = found["final"] - found["offline"]
    found["spread"] = float(np.std(final, ddof=1)) if len(final) > 1 else math.nan
    found["lowest"] = fmean(min(run.values, default=math.nan) for run in group.runs)
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _last(runs: Sequence[Run]) -> list[float]:
    """The last evaluations; NaN where a run has none."""
    return [float(run.values[-1]) if len(run.values) else math.nan for run in runs]


def _sum(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Sums of what all ``parts`` have and can be summed."""
    shared = set.intersection(*({*part} for part in parts)) - {"spread"}
    return {name: sum(part[name] for part in parts) for name in shared}


def _cell(form: str, values: Mapping[str, float]) -> str:
    """The numbers as ``form`` has them, with – for what is not known, and no ± of one seed."""
    text = re.sub(r"{(\w+):(\S+?)}", lambda at: format(values[at[1]], at[2]) if at[1] in values else "–", form)
    return text.replace(" ± –", "")
