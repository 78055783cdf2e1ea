"""Finished runs, read back from what they left on the disk: summaries, and the configurations beside them."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from o2o_lightning.checkpoint.handover import PHASES, POLICIES
from o2o_lightning.checkpoint.run import PLAN, read_plan
from o2o_lightning.envs.scores import score_or_return
from o2o_lightning.errors import UserError, reason

SUMMARY = "summary.json"
# options that say where and how fast a run runs, or that the summary says better
UNTOLD = {
    "init_from", "dataset", "env_id", "compile", "chunk", "memmap", "memory_limit_gb", "eval_async", "env_process",
}  # fmt: skip
NAMES = {
    "td3_bc": "TD3+BC", "cal_ql": "Cal-QL", "odt": "Online DT", "bc10": "10 %-BC", "rebrac": "ReBRAC",
    "off2on": "Off2On", "uni_o4": "Uni-O4", "jsrl": "JSRL", "clone": "clone", "proto_td3": "PROTO+TD3",
    "pa_rl": "PA-RL", "fam_o2o": "FamO2O",
}  # fmt: skip
STAGES = ("clone", "reevaluate", "align")
PLAIN = ("td3", "sac", "ppo")  # fine-tuning without any protection, from a policy as it is


@dataclass(frozen=True, eq=False)
class Run:
    """One finished run.

    Attributes:
        phase: its last phase; the numbers are that one's, unless they say otherwise.
        start: the phase that it started from, None from scratch or from a dataset alone.
        options: values of the options by phase and name.
        clock, values: evaluations ``[P]``: environment steps (gradient updates offline), and scores, or returns where
            no reference exists.
        scored: whether they are scores.
        score: the summary's other scores, by name.
        warmup: environment steps before the first update, as configured.
        phases: the summary of each phase.
    """

    path: Path
    phase: str
    algorithm: str
    env_id: str
    dataset: str
    dataset_id: str
    seed: int
    start: str | None
    options: Mapping[tuple[str, str], str]
    clock: NDArray[np.float64]
    values: NDArray[np.float64]
    scored: bool
    score: Mapping[str, float]
    warmup: int
    phases: Mapping[str, Mapping[str, Any]]

    @property
    def method(self) -> str:
        """What ran, as a talk would call it."""
        plain = self.phase == "online" and self.algorithm in PLAIN
        name = method_name(self.algorithm)
        if plain and self.start is None:
            return f"{name} from scratch"
        return f"direct {name}" if plain and self.start in POLICIES else name

    def total(self, name: str) -> float:
        """A cost (``steps``, ``env_steps``, ``eval_env_steps``, ``seconds``), summed over the run's phases."""
        return float(sum(summary[name] for summary in self.phases.values()))


def method_name(algorithm: str) -> str:
    """``TD3+BC`` for ``td3_bc``; a method of somebody's own keeps its name."""
    return NAMES.get(algorithm) or (algorithm.upper() if len(algorithm) < 7 else algorithm)


def find(paths: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """The finished runs in directories and below, in order, and a line on each that was left out.

    Raises:
        UserError: a path that is no directory, or no finished run in any.
    """
    runs: dict[Path, Run] = {}
    notes: list[str] = []
    for root in paths:
        if not root.is_dir():
            raise UserError(f"{root}: there is no such directory. Pass run directories, or folders that hold them.")
        for folder in _folders(root):
            if folder.resolve() in runs:
                continue
            try:
                runs[folder.resolve()] = read(folder)
            except UserError as error:
                notes.append(str(error))
    if not runs:
        places = ", ".join(map(str, paths))
        raise UserError(f"{places}: no finished run in it. {' '.join(notes) or f'A run has a {SUMMARY}.'}")
    return _without_stages([*runs.values()], notes), notes


def _without_stages(runs: list[Run], notes: list[str]) -> list[Run]:
    """Less the runs of a single phase on the way, where the same data has runs that went online."""
    online = {(run.env_id, run.dataset_id) for run in runs if run.phase == "online"}
    stages = [run for run in runs if run.phase in STAGES and (run.env_id, run.dataset_id) in online]
    if stages:
        names = ", ".join(sorted({run.phase for run in stages}))
        notes.append(f"{len(stages)} runs that end with a phase on the way ({names}) are left out.")
    return [run for run in runs if run not in stages]


def _folders(root: Path) -> Iterator[Path]:
    """Run directories: those with a plan or a summary, or their ``seed-…`` folders where they have any."""
    for folder, names, files in os.walk(root):
        names[:] = sorted(name for name in names if not name.startswith("."))
        if PLAN in files or (SUMMARY in files and _is_ours(Path(folder))):
            seeds = [name for name in names if name.startswith("seed-")]
            names[:] = seeds
            if not seeds:
                yield Path(folder)


def _is_ours(folder: Path) -> bool:
    try:
        return {"phase", "algorithm", "score"} <= set(json.loads((folder / SUMMARY).read_text()))
    except TypeError:
        return False
    except (ValueError, OSError):
        return True  # or was: reading it says what is wrong


def read(folder: Path) -> Run:
    """The run in ``folder``.

    Raises:
        UserError: it is not finished, or not readable.
    """
    plan = read_plan(folder)
    if not plan and not (folder / SUMMARY).exists():
        raise UserError(f"{folder}: it is no run directory. Pass one, with a {SUMMARY}.")
    if seeds := [seed for command in plan for seed in command.get("seeds") or ()]:
        raise UserError(f"{folder}: it has several runs. Pass one of them, such as {folder}/seed-{seeds[0]}.")
    planned = [phase for command in plan for phase in command["phases"]]
    missing = [phase for phase in planned if not (folder / phase / SUMMARY).exists()]
    if missing or not (folder / SUMMARY).exists():
        where = f" (phase '{missing[0]}')" if missing else ""
        raise UserError(f"{folder}: unfinished{where}, left out. `o2o resume {folder}` goes on with it.")
    try:
        summary = json.loads((folder / SUMMARY).read_text())
        return _run(folder, summary)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OSError, yaml.YAMLError) as error:
        raise UserError(f"{folder}: its {SUMMARY} can't be read ({reason(error)}), left out.") from error


def _run(folder: Path, summary: dict[str, Any]) -> Run:
    phases = summary.get("phases") or {summary["phase"]: summary}
    configs = {phase: _config(folder, phase) for phase in phases}
    last, score = summary["phase"], summary["score"]
    source = _source(summary, _arguments(configs[last], "model").get("init_from"))
    options = {(phase, name): text for phase, config in configs.items() for name, text in _options(config)}
    curve = np.array([[clock, score_or_return(scored, return_)] for clock, return_, scored in score["curve"]], float)
    clock, values = curve.reshape(-1, 2).T
    return Run(
        path=folder,
        phase=last,
        algorithm=summary["algorithm"],
        env_id=summary["env_id"] or "no environment",
        dataset=_short(summary["dataset"]),
        dataset_id=summary.get("dataset_sha256") or f"{summary['dataset']}",
        seed=summary["seed"],
        start=source.get("phase"),
        options={**options, ("", "offline"): source.get("origin", ""), ("", "from"): source.get("phase") or ""},
        clock=clock,
        values=values,
        scored=any(scored is not None for _, _, scored in score["curve"]),
        score={name: value for name, value in score.items() if isinstance(value, int | float)},
        warmup=_arguments(configs[last], "data").get("warmup_steps", 0) if last == "online" else 0,
        phases=phases,
    )


def _source(summary: Mapping[str, Any], init_from: str | None) -> Mapping[str, Any]:
    """What the last phase started from; version 0.1 left only the checkpoint's path, …/PHASE/checkpoints/last.ckpt."""
    if "source" in summary or init_from is None:
        return summary.get("source") or {}
    return {"phase": next((name for name in reversed(Path(init_from).parts) if name in PHASES), POLICIES[0])}


def _config(folder: Path, phase: str) -> dict[str, Any]:
    places = [folder / phase / "config.yaml", folder / "config.yaml"]
    found = next((path for path in places if path.exists()), None)
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return (yaml.load(found.read_text(), loader) or {}) if found else {}


def _arguments(config: Mapping[str, Any], part: str) -> dict[str, Any]:
    return (config.get(part) or {}).get("init_args") or {}


def _options(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The options of a phase by the names that ``--model.…`` and ``--data.…`` set them by, as text."""
    model, data = _arguments(config, "model"), _arguments(config, "data")
    steps = (config.get("trainer") or {}).get("max_steps")
    for tree in (model, (model.get("method") or {}).get("init_args") or {}, data, {"steps": steps}):
        yield from ((name, text) for name, text in _flat(tree) if name.split(".")[0] not in UNTOLD | {"method"})


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", f"{value:g}" if isinstance(value, float) else str(value)


def _short(source: str | None) -> str:
    """``hopper-medium-v2`` for ``d4rl:hopper-medium-v2#sha256=…``, ``walker`` for ``data/walker.hdf5``."""
    name = (source or "no dataset").split("#")[0]
    if name.endswith((".hdf5", ".h5", ".hdf")):
        return Path(name).stem
    kind, _, rest = name.partition(":")
    return rest if kind in ("d4rl", "minari", "embedded") else name
