"""Learning curves over datasets and seeds: each method beside naive fine-tuning and the ablations.

    python benchmarks/learning.py run   --out learning --datasets a.hdf5 b.hdf5 --seeds 0 1 2 --arms o2td3 direct_td3
    python benchmarks/learning.py run   --stacked ...    # a job makes all seeds, in one process (docs/seeds.md)
    python benchmarks/learning.py table --out learning
    python benchmarks/learning.py record --out learning --file records.jsonl    # a line a run, which tables take too
    python benchmarks/learning.py apart --out learning --arms o2td3 o2td3_noutd    # each seed's end, arm beside arm
    python benchmarks/learning.py values --out learning    # re-evaluated critics against what π_off earns
    python benchmarks/learning.py elsewhere --out learning --arms o2td3    # the policies from other start states

A job is one `o2o fit --phase ...`; arms share the jobs that they start from. A finished job is not run again, and one
that was cut off goes on (`o2o resume`), so the same command continues a study that died.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from o2o_lightning.checkpoint.io import write_atomically
from o2o_lightning.cli.jobs import Chain, Job, ordered, run_chains
from o2o_lightning.envs.episodes import Evaluator
from o2o_lightning.envs.scores import reference_scores
from o2o_lightning.policies.load import LoadedPolicy, load_policy
from o2o_lightning.report.statistics import interval, iqm

ELSEWHERE = 777_000  # the first start state that no run evaluates at
EARLY = (2000, 6000)  # environment steps within which a hand-off collapses, if it does


def job(phase: str, *arguments: str, parent: str | None = None) -> Job:
    """A phase with its options."""
    return Job(phase, arguments, parent)


PAPER = "preset=paper"
# The ablations: `reevaluated_*` fine-tunes with the re-evaluated critic, `aligned_*` with the aligned one, both without
# the constraint. Squashed-Gaussian policies are clones of the same TD3+BC policy that TD3 starts from.
JOBS = {
    "td3_bc": job("offline", "offline=td3_bc"),
    "reevaluate_td3": job("reevaluate", "online=o2td3", parent="td3_bc"),
    "align_td3": job("align", "online=o2td3", parent="reevaluate_td3"),
    "o2td3": job("online", "online=o2td3", parent="align_td3"),
    "paper_td3": job("online", "online=o2td3", PAPER, parent="align_td3"),
    "direct_td3": job("online", "online=td3", parent="td3_bc"),
    "reevaluated_td3": job("online", "online=td3", parent="reevaluate_td3"),
    "aligned_td3": job("online", "online=o2td3", "experiment=no_constraint", parent="align_td3"),
    "clone": job("clone", "online=o2sac", "offline=td3_bc", parent="td3_bc"),
    "reevaluate_sac": job("reevaluate", "online=o2sac", parent="clone"),
    "align_sac": job("align", "online=o2sac", parent="reevaluate_sac"),
    "o2sac": job("online", "online=o2sac", parent="align_sac"),
    "paper_sac": job("online", "online=o2sac", PAPER, parent="align_sac"),
    "direct_sac": job("online", "online=sac", parent="clone"),
    "reevaluated_sac": job("online", "online=sac", parent="reevaluate_sac"),
    "aligned_sac": job("online", "online=o2sac", "experiment=no_constraint", parent="align_sac"),
    "cql": job("offline", "offline=cql", "online=o2sac"),
    "reevaluate_cql": job("reevaluate", "online=o2sac", parent="cql"),
    "align_cql": job("align", "online=o2sac", parent="reevaluate_cql"),
    "o2sac_cql": job("online", "online=o2sac", parent="align_cql"),
    "paper_sac_cql": job("online", "online=o2sac", PAPER, parent="align_cql"),
    "direct_sac_cql": job("online", "online=sac", parent="cql"),
    "iql": job("offline", "offline=iql", "online=o2ppo"),
    "reevaluate_ppo": job("reevaluate", "online=o2ppo", parent="iql"),
    "o2ppo": job("online", "online=o2ppo", parent="reevaluate_ppo"),
    "o2ppo_trials": job("online", "online=o2ppo", "--model.reference.mode=trials", parent="reevaluate_ppo"),
    "direct_ppo": job("online", "online=ppo", parent="reevaluate_ppo"),
}
# The hand-over: the policy's moments begin anew; π_off goes online with the aligned critics; it waits for them, and the
# multiplier is controlled, with no penalty in the critics' target.
FRESH = ("--model.actor_moments=fresh",)
OFFLINE = ("--model.hand_on=offline", *FRESH)
CONTROLLED = (
    "--model.hand_on=offline",
    "--model.policy_after=2000",
    "--model.multiplier.rule=pi",
    "--model.penalty_limit=0.0",
)
# The default without each of its parts: one update a step; no way back but to begin anew; λ and the share of training
# episodes left alone; the actor plays all of them; two confirming episodes; no alignment.
PARTS = {
    "noutd": ("--data.utd=1",),
    "noretreat": ("--model.trials.retreats=0",),
    "noease": ("--model.trials.ease=1.0",),
    "noshare": ("--model.trials.share=0.0",),
    "noconfirm": ("--model.trials.confirmations=2",),
}
# Re-evaluations that hasten: targets that follow ten times as fast, or values that begin where the rewards put them
HASTENED = {"fast": ("--model.fast_updates=8000",), "data": ("--model.initial_value=data",)}
HASTENED["both"] = (*HASTENED["data"], *HASTENED["fast"])
FOUR = "--data.utd=4"  # the default's updates a step, where nothing holds the policy
MEASURED = (*CONTROLLED, "--model.threshold.measured=true")
for which in ("td3", "sac"):
    for name, typed in PARTS.items():
        JOBS[f"o2{which}_{name}"] = job("online", f"online=o2{which}", *typed, parent=f"align_{which}")
    JOBS[f"o2{which}_noalign"] = job("online", f"online=o2{which}", parent=f"reevaluate_{which}")
    for name, typed in HASTENED.items():
        start = JOBS[f"reevaluate_{which}"].parent
        JOBS[f"reevaluate_{which}_{name}"] = job("reevaluate", f"online=o2{which}", *typed, parent=start)
        JOBS[f"align_{which}_{name}"] = job("align", f"online=o2{which}", parent=f"reevaluate_{which}_{name}")
        JOBS[f"o2{which}_{name}"] = job("online", f"online=o2{which}", parent=f"align_{which}_{name}")
        JOBS[f"paper_{which}_{name}"] = job("online", f"online=o2{which}", PAPER, parent=f"align_{which}_{name}")
    for arm in (f"paper_{which}", f"direct_{which}"):
        JOBS[f"{arm}_utd4"] = job("online", *JOBS[arm].choices, FOUR, parent=JOBS[arm].parent)
    for name, typed in {"fresh": FRESH, "off": OFFLINE, "pi": CONTROLLED, "pim": MEASURED}.items():
        JOBS[f"o2{which}_{name}"] = job("online", f"online=o2{which}", PAPER, *typed, parent=f"align_{which}")
ARMS = [name for name, found in JOBS.items() if found.phase == "online"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one of the commands."""
    arguments = parsed(argv)
    command: Any = arguments.command
    return int(command(arguments))


def parsed(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """What was typed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run")
    run.add_argument("--out", type=Path, required=True)
    run.add_argument("--datasets", nargs="+", required=True, help="files, or names such as embedded:hopper-medium")
    run.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    run.add_argument("--arms", nargs="+", choices=JOBS, default=ARMS, metavar="ARM")
    run.add_argument("--steps", nargs="+", default=[], metavar="PHASE=N", help="as steps.PHASE=N of `o2o fit`")
    run.add_argument("--options", nargs="+", default=[], metavar="NAME=VALUE", help="overrides of every `o2o fit`")
    run.add_argument("--stacked", action="store_true", help="all seeds of a dataset in one job")
    run.add_argument("--workers", type=int, default=1, help="jobs at once; each takes one core")
    run.set_defaults(command=_run)
    table = commands.add_parser("table")
    table.add_argument("--out", type=Path, required=True, help="a study's folder, or the file of its records")
    table.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS, metavar="ARM")
    table.set_defaults(command=_table)
    apart = commands.add_parser("apart")
    apart.add_argument("--out", type=Path, required=True, help="a study's folder, or the file of its records")
    apart.add_argument("--arms", nargs="+", choices=ARMS, required=True)
    apart.add_argument("--early", action="store_true", help="in brackets the mean at 2k–6k, not that of the whole run")
    apart.set_defaults(command=_apart)
    record = commands.add_parser("record")
    record.add_argument("--out", type=Path, required=True)
    record.add_argument("--file", type=Path, required=True, help="made, or gone on with: a run's line takes its place")
    record.set_defaults(command=_record)
    values = commands.add_parser("values")
    values.add_argument("--out", type=Path, required=True)
    values.set_defaults(command=_values)
    elsewhere = commands.add_parser("elsewhere")
    elsewhere.add_argument("--out", type=Path, required=True)
    elsewhere.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    elsewhere.add_argument("--episodes", type=int, default=60)
    elsewhere.set_defaults(command=_elsewhere)
    return parser.parse_args(argv)


def _run(arguments: argparse.Namespace) -> int:
    failed = run_chains(chains(arguments), arguments.workers)
    for path in failed:
        print(f"failed: {path}.log says why", file=sys.stderr)
    return 1 if failed else 0


def chains(arguments: argparse.Namespace) -> list[Chain]:
    """The jobs of each dataset and seed, or of each dataset."""
    options = [*(f"steps.{step}" for step in arguments.steps), *arguments.options]
    places: list[tuple[str, list[str], Sequence[int]]] = [
        (f"seed{seed}", [f"--seed_everything={seed}"], ()) for seed in arguments.seeds
    ]
    if arguments.stacked:
        places = [("stacked", [], arguments.seeds)]
    made = []
    for place, own, seeds in places:
        for dataset in arguments.datasets:
            typed = [*options, f"--data.dataset={dataset}", *own]
            folder = arguments.out / Path(dataset.split(":")[-1]).stem / place
            made.append(Chain(folder, JOBS, {name: typed for name in ordered(JOBS, arguments.arms)}, seeds))
    return made


def _table(arguments: argparse.Namespace) -> int:
    """Means of the seeds, of four or more those of the middle half, with 95 % intervals; and who was held."""
    print("| dataset | arm | seeds | π_off | π_on | lowest at 2k–6k | mean at 2k–6k | end | held |")
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|")
    found = records(arguments.out)
    for dataset in dict.fromkeys(name for name, *_ in found):
        for arm in arguments.arms:
            if runs := [scores(run) for key, run in found.items() if key[:2] == (dataset, arm)]:
                print(f"| {dataset} | {arm} | {len(runs)} | " + " | ".join(cells(runs)) + " |")
    return 0


def _apart(arguments: argparse.Namespace) -> int:
    """Each seed's end with its mean in brackets, and ``!`` where it was not held; of seeds that have the first arm."""
    found = records(arguments.out)
    first, *others = arguments.arms
    print("| dataset | seeds | " + " | ".join(arguments.arms) + " |")
    print("|---|---|" + "---|" * len(arguments.arms))
    for dataset in dict.fromkeys(name for name, *_ in found):
        seeds = [seed for name, arm, seed in found if (name, arm) == (dataset, first)]
        seeds = [seed for seed in seeds if any((dataset, arm, seed) in found for arm in others)]
        if seeds:
            rows = [[found.get((dataset, arm, seed)) for seed in seeds] for arm in arguments.arms]
            shown = [", ".join(_briefly(run, arguments.early) for run in row) for row in rows]
            print(f"| {dataset} | {', '.join(seeds)} | " + " | ".join(shown) + " |")
    return 0


def _briefly(run: dict[str, Any] | None, soon: bool) -> str:
    if run is None:
        return "–"
    score = scores(run)
    middle = early(score) if soon else early(score, (0, run["env_steps"]))
    return f"{score['final']:.1f} [{mean(middle):.1f}]{'' if held(score) else '!'}"


def _record(arguments: argparse.Namespace) -> int:
    """The runs of a study as lines of a file that outlives it; those of other seeds and arms stay there."""
    kept = {**(records(arguments.file) if arguments.file.exists() else {}), **records(arguments.out)}
    lines = [json.dumps({"run": key, **kept[key]}) for key in sorted(kept)]
    write_atomically(arguments.file, "".join(f"{line}\n" for line in lines).encode())
    print(f"{arguments.file}: {len(lines)} runs")
    return 0


Key = tuple[str, str, str]  # dataset, arm, seed
RECORDED = ("dataset_sha256", "source", "env_steps", "eval_env_steps", "versions", "score", "trials")


def records(out: Path) -> dict[Key, dict[str, Any]]:
    """What the summaries of a study's finished online phases say, from its folder or from its file of records."""
    if out.is_file():
        lines = [json.loads(line) for line in out.read_text().splitlines()]
        return {tuple(line.pop("run")): line for line in lines}
    files = {(name, arm, seed): folder / "online/summary.json" for name, arm, seed, folder in runs_in(out)}
    found = {key: json.loads(file.read_text(), parse_float=shortened) for key, file in files.items() if file.exists()}
    return {key: {name: run[name] for name in RECORDED if name in run} for key, run in found.items()}


def runs_in(out: Path) -> list[tuple[str, str, str, Path]]:
    """Dataset, arm, seed and folder of each run of a study, in this order."""
    apart = [(path, path, path.parent.name) for path in out.glob("*/seed*/*")]
    together = [(path, path.parent, path.name) for path in out.glob("*/stacked/*/seed-*")]
    return sorted(
        (job.parents[1].name, job.name, seed.removeprefix("seed").removeprefix("-"), folder)
        for folder, job, seed in (*apart, *together)
        if folder.is_dir()
    )


def shortened(number: str) -> float:
    """Of a summary's numbers, what a record keeps."""
    return round(float(number), 3)


def scores(summary: dict[str, Any]) -> dict[str, Any]:
    """What a run has scored; π_on is the alignment's, which an arm without one does not have."""
    aligned = summary["source"]["phase"] == "align"
    return {name: value for name, value in summary["score"].items() if aligned or name != "aligned"}


def cells(runs: Sequence[dict[str, Any]]) -> list[str]:
    """What a row says of an arm's runs, behind their number."""
    rows = []
    for run in runs:
        soon = early(run)
        means = (min(soon), mean(soon)) if soon else (None, None)  # too short a run to tell
        rows.append([run.get("offline"), run.get("aligned"), *means, run["final"]])
    columns = [None if None in column else np.array(column, float) for column in zip(*rows, strict=True)]
    shown = ["–" if column is None else with_interval(column) for column in columns]
    return [*shown, f"{sum(map(held, runs))} of {len(runs)}"]


def with_interval(values: np.ndarray[Any, np.dtype[np.float64]]) -> str:
    """Of the values of all seeds."""
    value, low, high = interval(iqm, [values[:, None]])[:, 0]
    return f"{value:.1f}" + ("" if np.isnan(low) else f" [{low:.1f}, {high:.1f}]")


def held(score: dict[str, Any]) -> bool:
    """Whether no early evaluation is below 95 % of the better of π_off and π_on, as far as they are known."""
    known = [float(score[name]) for name in ("offline", "aligned") if score.get(name) is not None]
    start = max(known, default=-np.inf)
    return min(early(score), default=-np.inf) >= start - 0.05 * abs(start)


def _values(arguments: argparse.Namespace) -> int:
    """Of each re-evaluation, what its critic says of what π_off does, what π_off earned, and how the two correlate."""
    print("| dataset | re-evaluation | the critic says, π_off earned, each seed | correlation |")
    print("|---|---|---|---|")
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for dataset, name, _, folder in runs_in(arguments.out):
        file = folder / "reevaluate/summary.json"
        if file.exists() and (earned := json.loads(file.read_text()).get("earned")):
            found.setdefault((dataset, name), []).append(earned)
    for (dataset, name), seeds in found.items():
        values = ", ".join(f"{earned['value']:.0f} of {earned['truth']:.0f}" for earned in seeds)
        agree = ", ".join(f"{earned['correlation']:.2f}" for earned in seeds)
        print(f"| {dataset} | {name} | {values} | {agree} |")
    return 0


def _elsewhere(arguments: argparse.Namespace) -> int:
    """Each seed's π_off, and what its run stands for at the end, from start states that no run has evaluated at."""
    print("| dataset | arm | π_off → at the end, each seed |")
    print("|---|---|---|")
    found: dict[tuple[str, str], list[Path]] = {}
    for dataset, arm, _, folder in runs_in(arguments.out):
        path = folder / "online/checkpoints/last.ckpt"
        if arm in arguments.arms and path.exists():
            found.setdefault((dataset, arm), []).append(path)
    for (dataset, arm), paths in found.items():
        pairs = [
            [_judged(load_policy(path, end), arguments.episodes) for end in ("offline", "actor")] for path in paths
        ]
        print(f"| {dataset} | {arm} | {'; '.join(' → '.join(pair) for pair in pairs)} |", flush=True)
    return 0


def _judged(loaded: LoadedPolicy, episodes: int) -> str:
    """Mean and standard error, in points of the score where there is one."""
    source, reference = loaded.source, reference_scores(loaded.env_id)
    sizes, kwargs = loaded.policy.spec.observation_dim, source.kwargs_in(loaded.env_id)
    found = Evaluator(loaded.env_id, sizes, episodes, ELSEWHERE, reference, source.layout, kwargs).run(loaded.player)
    unit = 1.0 if reference is None else (reference[1] - reference[0]) / 100.0
    return f"{found.value:.1f} ± {stdev(found.returns) / len(found.returns) ** 0.5 / unit:.1f}"


def early(score: dict[str, Any], between: tuple[int, int] = EARLY) -> list[float]:
    """The evaluations while a hand-off shows whether it holds; raw returns where there is no score."""
    first, last = between
    return [float(ret if value is None else value) for step, ret, value in score["curve"] if first <= step <= last]


if __name__ == "__main__":
    sys.exit(main())
