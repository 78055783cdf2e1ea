"""A report on finished runs: the page, its pictures, its tables, and every number once more for programs."""

import json
import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from o2o_lightning.checkpoint.io import write_atomically, write_json
from o2o_lightning.errors import UserError
from o2o_lightning.policies.load import load_policy
from o2o_lightning.report import figures
from o2o_lightning.report.groups import COSTS, MEASURES, Group, pooled
from o2o_lightning.report.page import Block, Bullets, Heading, Picture, Table, Text, duration, latex, markdown, page
from o2o_lightning.report.statistics import Array
from o2o_lightning.report.video import played

TITLES = {"offline": "π_off", "aligned": "π_on", "lowest_early": "lowest early"}
SHOWN = {"env_steps": "env steps", "eval_env_steps": "evaluation steps", "steps": "updates", "seconds": "time"}
FILMED = range(1000, 1001)  # the seed of the episode's start: that of an evaluation's first one
HOW = (
    "[ ] are 95 % percentile bootstrap intervals over seeds, 2,000 resamples, within each dataset. IQM is the "
    "interquartile mean; of fewer than four runs it is the mean. With few seeds an interval is narrower than the truth."
)


def scores(groups: Sequence[Group], intervals: bool = True) -> Table:
    """What policies were worth, interquartile means; measures that nobody has are left out."""
    return _table(groups, [group.iqm for group in groups], intervals)


def costs(groups: Sequence[Group]) -> Table:
    """What the runs took, means over the seeds."""
    rows = [[group.label, *(_cost(name, group.cost(name)) for name in COSTS)] for group in groups]
    return Table(["method", *SHOWN.values()], rows)


def tasks(groups: Sequence[Group]) -> list[list[Group]]:
    """The groups by environment, dataset and clock: those that one picture shows."""
    return [[*same] for _, same in groupby(groups, key=lambda group: (group.task, group.online))]


def write(groups: Sequence[Group], notes: Sequence[str], folder: Path, films: bool = False) -> list[str]:
    """Writes the report into ``folder``; what an earlier one has left there is replaced.

    With ``films`` each group also has an episode of the last policy of its middle run. Returns the notes, and why a
    film is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    notes = [*notes]
    blocks: list[Block] = [Heading("Report", 1), Text(_sentence(groups))]
    tables = []
    for same in tasks(groups):
        name = _file_name(same[0].title)
        blocks += [Heading(same[0].title), *_pictures(same, folder, name)]
        blocks += [Text(f"{figures.unit(same)}, interquartile means:"), scores(same)]
        if any(len(group.runs) > 3 for group in same):
            blocks += [Text("Means:"), _table(same, [group.mean for group in same])]
        blocks += [Text("Costs, means over the seeds:"), costs(same)]
        for group in same if films else ():
            blocks += _film(group, folder, notes)
        tables.append(f"% {same[0].title}, {figures.unit(same)}, IQM\n{latex(scores(same))}")
    if methods := pooled(groups):
        figures.over_datasets(methods, folder / "all-datasets")
        rows = [[name, f"{len(found)}", _cell(figures.final(found))] for name, found in methods.items()]
        blocks += [Heading("Over all datasets"), Picture(folder / "all-datasets.png", "final score over all datasets")]
        blocks.append(Table(["method", "datasets", "final, IQM"], rows))
    meanings = [f"{TITLES.get(name, name)}: {text}" for name, text in MEASURES.items()]
    meanings += [f"{SHOWN[name]}: {text}" for name, text in COSTS.items()]
    blocks += [Heading("What the numbers are"), Text(HOW), Bullets(meanings), Heading("Runs")]
    runs = [f"{group.label}, {group.task}, seed {run.seed}: {run.path}" for group in groups for run in group.runs]
    blocks.append(Bullets([*runs, *notes]))
    written = {"report.md": markdown(blocks), "report.html": page(blocks, "Report"), "table.tex": "\n".join(tables)}
    for file, text in written.items():
        write_atomically(folder / file, text.encode())
    write_json(folder / "report.json", {"groups": [facts(group) for group in groups], "left_out": notes})
    return notes


def facts(group: Group) -> dict[str, Any]:
    """A group as plain values; None for what is not known."""
    value, low, high = group.band
    together = {name: {"iqm": _plain(group.iqm[name]), "mean": _plain(group.mean[name])} for name in MEASURES}
    runs = [
        {"path": str(run.path), "seed": run.seed, **dict(zip(MEASURES, _plain(row), strict=True))}
        | {name: run.total(name) for name in COSTS}
        for run, row in zip(group.runs, group.measures, strict=True)
    ]
    return {
        "method": group.label, "algorithm": group.runs[0].algorithm, "env_id": group.runs[0].env_id,
        "dataset": group.runs[0].dataset, "unit": figures.unit([group]), "seeds": [run.seed for run in group.runs],
        "measures": together, "costs": {name: group.cost(name) for name in COSTS},
        "curve": {"clock": "env_steps" if group.online else "updates", "at": _plain(group.clock), "iqm": _plain(value),
                  "low": _plain(low), "high": _plain(high)},
        "runs": runs,
    }  # fmt: skip


def is_report(folder: Path) -> bool:
    """Whether an earlier report of ours is there, which may be replaced."""
    try:
        return {"groups", "left_out"} <= set(json.loads((folder / "report.json").read_text()))
    except (OSError, ValueError, TypeError):
        return False


def _pictures(groups: Sequence[Group], folder: Path, name: str) -> list[Block]:
    drawn: list[Block] = []
    if any(len(group.clock) > 1 for group in groups):
        figures.curves(groups, folder / f"curves-{name}")
        drawn.append(Picture(folder / f"curves-{name}.png", f"learning curves, {groups[0].task}"))
    if groups[0].online:
        figures.handover(groups, folder / f"handover-{name}")
        drawn.append(Picture(folder / f"handover-{name}.png", f"the hand-over, {groups[0].task}"))
    return drawn


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text)


def _film(group: Group, folder: Path, notes: list[str]) -> list[Block]:
    """An episode of the last policy of the run in the middle, or a note why it can't be shown."""
    run = group.middle
    path = folder / f"film-{_file_name(f'{group.title} {group.label}')}.gif"
    path.unlink(missing_ok=True)
    try:
        loaded = load_policy(run.path / run.phase / "checkpoints" / "last.ckpt")
        if loaded.env_id is None:
            raise UserError(f"checkpoint {loaded.source.path}: it names no environment.")
        (episode,) = played(loaded, loaded.env_id, FILMED, path, smaller=2)
    except UserError as error:
        notes.append(f"{group.label}, {group.task}: no film. {error}")
        return []
    return [Picture(path, f"{group.label}, seed {run.seed}, an episode of its last policy: {episode}")]


def _sentence(groups: Sequence[Group]) -> str:
    runs = sum(len(group.runs) for group in groups)
    methods, places = {group.label for group in groups}, {group.task for group in groups}
    return f"{runs} runs: {', '.join(sorted(methods))}; on {'; '.join(sorted(places))}."


def _table(groups: Sequence[Group], found: Sequence[dict[str, Array]], intervals: bool = True) -> Table:
    names = [name for name in MEASURES if any(np.isfinite(values[name][0]) for values in found)]
    rows = [
        [group.label, f"{len(group.runs)}"]
        + [_cell(values[name][: 3 if intervals else 1], 2 if name == "regret" else 1) for name in names]
        for group, values in zip(groups, found, strict=True)
    ]
    return Table(["method", "seeds", *(TITLES.get(name, name) for name in names)], rows)


def _cell(values: Array, digits: int = 1) -> str:
    if not np.isfinite(values[0]):
        return "–"
    value, *ends = (f"{number:.{digits}f}" for number in values)
    return f"{value} [{', '.join(ends)}]" if np.isfinite(values[1:]).all() and ends else value


def _cost(name: str, value: float) -> str:
    return duration(value) if name == "seconds" else f"{value:,.0f}"


def _plain(values: Array) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]
