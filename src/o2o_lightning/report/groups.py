"""Runs of one kind side by side: the same method, data and options, several seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import numpy as np

from o2o_lightning.report.runs import Run
from o2o_lightning.report.statistics import Array, interval, iqm, mean

# name of a number, and what it is
MEASURES = {
    "offline": "the offline policy",
    "aligned": "the policy that fine-tuning began with",
    "lowest_early": "lowest evaluation after the first update, within 6,000 environment steps or a tenth of the budget",
    "drop": "what the hand-over cost: π_off − lowest early",
    "final": "the last evaluation",
    "best": "the best evaluation",
    "area": "mean of the curve over its steps (trapezoids)",
    "regret": "mean of 1 − score/100 over the evaluations after the start",
}
COSTS = {
    "env_steps": "environment steps of training",
    "eval_env_steps": "environment steps of evaluations",
    "steps": "gradient updates of all phases of the run",
    "seconds": "wall clock of all phases of the run",
}


@dataclass(frozen=True, eq=False)
class Group:
    """Runs that differ in their seeds alone.

    Attributes:
        label: the method, with those of its options that other runs on the same data have otherwise.
        runs: in the order of their seeds.
    """

    label: str
    runs: list[Run]

    @cached_property
    def measures(self) -> Array:
        """Of each run, columns in the order of :data:`MEASURES`, ``[runs, M]``; NaN where a number is missing."""
        return np.stack([*map(_measures, self.runs)])

    @cached_property
    def curves(self) -> tuple[Array, Array]:
        """Steps ``[P]`` at which all runs have a curve, and their values there, ``[runs, P]``."""
        return _together(self.runs)

    @property
    def clock(self) -> Array:
        """The steps of :attr:`band`."""
        return self.curves[0]

    @property
    def task(self) -> str:
        """Environment and dataset."""
        return f"{self.runs[0].env_id}, {self.runs[0].dataset}"

    @property
    def title(self) -> str:
        """What a picture or a table of it is about."""
        return self.task if self.online else f"{self.task}, before going online"

    @property
    def online(self) -> bool:
        """Whether its curve is over environment steps."""
        return self.runs[0].phase == "online"

    @property
    def scored(self) -> bool:
        """Whether its numbers are normalised scores, not returns."""
        return all(run.scored for run in self.runs)

    def column(self, name: str) -> Array:
        """A measure of each run, ``[runs]``."""
        return np.asarray(self.measures[:, [*MEASURES].index(name)])

    @cached_property
    def iqm(self) -> dict[str, Array]:
        """Interquartile mean of each measure, with its interval."""
        return dict(zip(MEASURES, interval(iqm, [self.measures]).T, strict=True))

    @cached_property
    def mean(self) -> dict[str, Array]:
        """Mean of each measure, with its interval."""
        return dict(zip(MEASURES, interval(mean, [self.measures]).T, strict=True))

    @cached_property
    def band(self) -> Array:
        """Interquartile mean of the curves, with its interval, ``[3, P]``."""
        return interval(iqm, [self.curves[1]])

    @property
    def middle(self) -> Run:
        """The run whose last evaluation is in the middle; of an even number the worse one."""
        order = np.argsort(self.column("final"), kind="stable")
        return self.runs[int(order[(len(order) - 1) // 2])]

    def cost(self, name: str) -> float:
        """A cost, averaged over the runs."""
        return float(np.mean([run.total(name) for run in self.runs]))


def gather(runs: Sequence[Run]) -> list[Group]:
    """The runs in groups, ordered by data, then by method and options."""

    def data(run: Run) -> tuple[str, ...]:
        return run.env_id, run.dataset, run.dataset_id, f"{run.phase != 'online'} {run.phase}"

    def kind(run: Run) -> tuple[str, ...]:
        return *data(run), run.method, run.algorithm

    groups: list[Group] = []
    for _, same in groupby(sorted(runs, key=kind), key=kind):
        members = [*same]
        told = _differing(members)
        labels = {run.path: ", ".join([run.method, *_told(run, told)]) for run in members}
        for label in sorted(set(labels.values())):
            found = sorted((run for run in members if labels[run.path] == label), key=lambda run: run.seed)
            groups.append(Group(label, found))
    return groups


def pooled(groups: Sequence[Group]) -> dict[str, list[Group]]:
    """By label, the groups with scores online, of the methods that have several datasets."""
    found: dict[str, list[Group]] = {}
    for group in groups:
        if group.online and group.scored:
            found.setdefault(group.label, []).append(group)
    return {label: members for label, members in found.items() if len(members) > 1}


def _measures(run: Run) -> Array:
    values, clock = run.values, run.clock
    found = {**run.score, "drop": run.score.get("offline", np.nan) - run.score.get("lowest_early", np.nan)}
    if len(values):
        span = clock[-1] - clock[0]
        middles = (values[1:] + values[:-1]) / 2
        found["area"] = float(middles @ np.diff(clock) / span) if span else float(values[-1])
    if run.scored and run.phase == "online" and (clock > 0).any():
        found["regret"] = float(np.mean(1 - values[clock > 0] / 100))
    return np.array([found.get(name, np.nan) for name in MEASURES], float)


def _together(runs: Sequence[Run]) -> tuple[Array, Array]:
    """The curves on one clock, between evaluations by straight lines, as far as all of them go."""
    known = [run for run in runs if len(run.clock)]
    if len(known) < len(runs):
        return np.empty(0), np.empty((len(runs), 0))
    first, last = max(run.clock[0] for run in runs), min(run.clock[-1] for run in runs)
    clock = np.unique(np.concatenate([run.clock for run in runs]))
    clock = clock[(first <= clock) & (clock <= last)]
    return clock, np.stack([np.interp(clock, run.clock, run.values) for run in runs])


def _differing(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """The options, by phase and name, that the phases which all of the runs have set differently."""
    shared = set.intersection(*({*run.phases} for run in runs)) | {""}
    keys = sorted({key for run in runs for key in run.options if key[0] in shared})
    return [key for key in keys if len({run.options.get(key) for run in runs}) > 1]


def _told(run: Run, keys: Sequence[tuple[str, str]]) -> list[str]:
    """``name=value`` of the options; with the phase where the phases have other values."""
    by_name: dict[str, dict[str, str]] = {}
    for phase, name in keys:
        by_name.setdefault(name, {})[phase] = run.options.get((phase, name), "–")
    lines = []
    for name, values in by_name.items():
        if len({*values.values()}) == 1:
            lines.append(f"{name}={next(iter(values.values()))}")
        else:
            lines += [f"{phase}.{name}={value}" for phase, value in values.items()]
    return lines
