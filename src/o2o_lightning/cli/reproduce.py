"""``o2o reproduce``: the runs of a table or figure of the paper, and the table beside the paper's numbers."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from o2o_lightning.checkpoint.io import write_atomically, write_json
from o2o_lightning.cli.arguments import Parser
from o2o_lightning.cli.command import split
from o2o_lightning.cli.compose import compose, config_dir, groups
from o2o_lightning.cli.jobs import Chain, Job, ordered, run_chains
from o2o_lightning.cli.models import accepts, default
from o2o_lightning.cli.show import say, show_rows
from o2o_lightning.errors import Failure, UserError
from o2o_lightning.limits import read_json
from o2o_lightning.report.paper import Result, rows_beside, tall, written

DESCRIPTION = """\
Runs what a table or figure of the paper is made of (configs/reproduce.yaml), and prints it beside the paper's numbers.
Policies that several arms start from are trained once a seed, and are shared with other tables in the same --run_dir.
The same command again skips what is finished and goes on with what was cut off. What else is typed goes to every
`o2o fit`: --trainer.accelerator cpu, --data.batch_size 64, model.hidden=[64,64].
"""
PRESET = "preset=paper"  # the hand-over is the paper's own
WIDE = 6  # arms side by side
STAMP = "reproduce.json"  # what all runs of a directory have in common


@cache
def results() -> dict[str, Result]:
    """Every table and figure."""
    return {name: Result(**found) for name, found in _content()["results"].items()}


@cache
def jobs() -> dict[str, Job]:
    """Every step that there is, by its name."""
    made = {}
    for name, step in _content()["steps"].items():
        own = any(choice.startswith("preset=") for choice in step["choices"])
        made[name] = Job(step["phase"], (*([] if own else [PRESET]), *step["choices"]), step.get("from"))
    return made


@cache
def _content() -> dict[str, Any]:
    return dict(yaml.safe_load((config_dir() / "reproduce.yaml").read_text(encoding="utf-8")))


def main(argv: list[str]) -> int:
    """Runs ``o2o reproduce``."""
    parser = Parser("o2o reproduce", description=DESCRIPTION)
    parser.add_argument("name", nargs="?", metavar="table1 … table6, figure1 … figure14", help="default: lists them")
    parser.add_argument("--run_dir", type=Path, default=Path("reproduce"), help="of all runs (default: reproduce)")
    parser.add_argument("--seeds", type=_numbers, default=(0, 1, 2, 3, 4), metavar="0,1,…", help="default: 0,1,2,3,4")
    parser.add_argument("--datasets", nargs="+", metavar="NAME[=SPEC]", help="these alone; SPEC: where NAME's data is")
    parser.add_argument("--scale", type=float, default=1.0, help="of every count of steps (default: 1)")
    parser.add_argument("--workers", type=int, default=1, help="runs at once, a core each (default: 1)")
    parser.add_argument("--dry_run", action="store_true", help="print what would be run")
    arguments, rest = parser.parse_known_args(argv)
    if arguments.name is None:
        show_rows("o2o reproduce NAME", [{"name": name, "shows": found.shows} for name, found in results().items()])
        return 0
    if arguments.name not in results():
        raise UserError(f"o2o reproduce {arguments.name}: there is no such result. `o2o reproduce` lists them.")
    if not 0.0 < arguments.scale <= 1.0 or arguments.workers < 1:
        raise UserError("--scale, --workers: a part above 0 and at most 1, and at least one worker, are needed.")
    result = results()[arguments.name]
    specs = _specs(arguments.datasets, result)
    made = chains(result, arguments.run_dir, specs, arguments.seeds, arguments.scale, rest)
    if arguments.dry_run:
        _show_plan(made)
        return 0
    _stamp(arguments.run_dir, {"scale": arguments.scale, "options": rest})
    failed = run_chains(made, arguments.workers)
    notes = [*result.notes, *_deviations(specs, arguments.seeds, arguments.scale, rest)]
    show(arguments.name, result, arguments.run_dir, specs, arguments.seeds, notes)
    if failed:
        raise Failure(f"{len(failed)} runs failed or could not begin; {failed[0]}.log says why of the first.")
    return 0


def chains(
    result: Result, run_dir: Path, specs: Mapping[str, str], seeds: Sequence[int], scale: float, rest: Sequence[str]
) -> list[Chain]:
    """What there is to run: a chain for every dataset and seed."""
    known = jobs()
    names = [*ordered(known, [*result.arms.values()])]

    def chain(dataset: str, spec: str, seed: int) -> Chain:
        def options(job: Job) -> list[str]:
            data = _data(job, dataset, spec)
            counts = scaled(job, data, scale) if scale != 1.0 else []
            return [*data, *counts, *rest, f"--seed_everything={seed}"]

        typed = {name: options(known[name]) for name in names}  # now: Hydra composes for one at a time
        return Chain(run_dir / dataset / f"seed{seed}", known, typed)

    return [chain(dataset, spec, seed) for seed in seeds for dataset, spec in specs.items()]


def scaled(job: Job, data: Sequence[str], scale: float) -> list[str]:
    """Its count of steps, the steps between evaluations, and the warm-up, each ``scale`` times as large."""
    composed = compose(job.phase, split([f"--phase={job.phase}", *job.choices, *data]))
    key, every = ("env", "eval_every") if job.phase == "online" else (job.phase, "eval_every_updates")
    found = [f"steps.{key}={_part(composed['steps'][key], scale)}"]
    found.append(f"--data.{every}={_part(composed['data'][every], scale)}")
    if job.phase == "online" and accepts(composed["data_class"], "warmup_steps"):
        usual = composed["data"].get("warmup_steps", default(composed["data_class"], "warmup_steps"))
        found.append(f"--data.warmup_steps={round(usual * scale)}")
    return found


def _part(count: int, scale: float) -> int:
    return max(round(count * scale), 1) if count else 0


def _data(job: Job, dataset: str, spec: str) -> list[str]:
    """What names the data, with the hyper-parameters of ``dataset``; from scratch its environment alone."""
    row = [f"dataset={dataset}"] if dataset in groups()["dataset"] else []
    if "experiment=scratch" not in job.choices:
        return [*row, *([f"--data.dataset={spec}"] if spec else [])]
    from o2o_lightning.data.d4rl import D4RL_TASKS
    from o2o_lightning.data.spec import load_raw

    env_id = load_raw(spec).env_id if spec else D4RL_TASKS[dataset].env_id
    return [*row, f"--data.env_id={env_id}"]


def _specs(given: Sequence[str] | None, result: Result) -> dict[str, str]:
    """Where the data of each dataset is, by its name; nothing where its name alone says it."""
    if given is None:
        return dict.fromkeys(result.datasets, "")
    specs = {name: spec for name, _, spec in (item.partition("=") for item in given)}
    for name, spec in specs.items():
        if not spec and name not in groups()["dataset"]:
            raise UserError(f"--datasets {name}: it has no hyper-parameters of its own. Pass {name}=FILE.hdf5.")
    return specs


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def _stamp(run_dir: Path, asked: dict[str, Any]) -> None:
    """Runs of another scale, or with other options, are not mixed."""
    path = run_dir / STAMP
    if not path.exists():
        run_dir.mkdir(parents=True, exist_ok=True)
        write_json(path, asked)
    elif read_json(path.read_text()) != asked:
        raise UserError(f"--run_dir {run_dir}: it was begun with another --scale or other options. Pass another.")


def _show_plan(made: Sequence[Chain]) -> None:
    """A line for each step, with what is typed for the first dataset and seed."""
    first = made[0]
    for name in first.options:
        job = first.jobs[name]
        start = f" from {job.parent}" if job.parent else ""
        say(f"{name}{start}: o2o fit --phase {job.phase} {' '.join([*job.choices, *first.options[name]])}")
    left = sum(not chain.finished(name) for chain in made for name in chain.options)
    say(f"{len(first.options)} steps of {len(made)} datasets and seeds: {left} runs to make")


def show(
    name: str, result: Result, run_dir: Path, specs: Mapping[str, str], seeds: Sequence[int], notes: Sequence[str]
) -> None:
    """Prints what there is beside the paper's numbers, and leaves it in ``RUN_DIR/NAME`` with a report on the runs."""
    from o2o_lightning.report.groups import Group
    from o2o_lightning.report.report import write
    from o2o_lightning.report.runs import read

    known, found, sources = jobs(), {}, {}
    for dataset in specs:
        for arm, step in result.arms.items():
            first, places = step, [run_dir / dataset / f"seed{seed}" / step for seed in seeds]
            runs = [read(place) for place in places if (place / "summary.json").exists()]
            if not runs:
                continue
            found[dataset, arm] = Group(arm, runs)
            while (parent := known[first].parent) is not None and known[first].phase != "clone":
                first = parent
            sources[dataset, arm] = [read(run.path.parent / first) for run in runs]
    rows = rows_beside(result, [*specs], found, sources)
    show_rows(f"{name}: {result.shows}", rows if len(result.arms) <= WIDE else tall(rows))
    for line in [*([f"the paper: {result.says}"] if result.says else []), *notes]:
        say(line)
    if found:
        write([*found.values()], notes, run_dir / name)
        write_atomically(run_dir / name / "table.md", written(result, rows, notes).encode())
        say(f"{run_dir / name}: table.md, and a report with curves")


def _deviations(specs: Mapping[str, str], seeds: Sequence[int], scale: float, rest: Sequence[str]) -> list[str]:
    """Where these runs are not the paper's, whatever the result."""
    found = [f"{name}: its data is {spec}, not the paper's" for name, spec in specs.items() if spec]
    found += [f"seeds: {len(seeds)}, the paper has five"] if len(seeds) != 5 else []
    found += [f"{scale:g} of the paper's steps; schedules are not scaled"] if scale != 1.0 else []
    found += [f"typed for every run: {' '.join(rest)}"] if rest else []
    return found
