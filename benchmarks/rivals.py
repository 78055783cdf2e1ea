"""Every online method at equal budgets, each after its own offline method: the table of docs/results.md.

    python benchmarks/rivals.py --out rivals --datasets a.hdf5 b.hdf5 --seeds 0 1 2 --workers 2
    o2o report rivals/*/seed*/online-*/ --out report

Methods with the same offline method begin with the same policy of a seed, and so differ by what they make of it. Small
networks and short phases, for a study that two cores end in some hours: where a phase is this short its rates are 1e-3.
A finished job is not run again, and one that was cut off goes on: the same command continues a study that died.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from o2o_lightning.cli.command import split
from o2o_lightning.cli.compose import compose
from o2o_lightning.cli.jobs import Chain, Job, ordered, run_chains
from o2o_lightning.cli.models import accepts

METHODS = {  # by the method whose offline phase they share
    "td3": ["td3", "o2td3", "proto_td3"],
    "cql": ["sac", "o2sac", "cql", "proto"],
    "iql": ["iql", "pex", "jsrl", "ppo", "o2ppo", "pa_rl"],
    **{alone: [alone] for alone in ("awac", "cal_ql", "spot", "rebrac", "aca", "fam_o2o", "odt", "uni_o4")},
    **{alone: [alone] for alone in ("wsrl", "off2on", "rlpd")},
    "enoto": ["enoto", "so2"],
}
STEPS = {"offline": 10_000, "reevaluate": 8_000, "align": 5_000, "env": 20_000}
# Sequences and ensembles cost more an update; SPOT's first ones are its auto-encoder's
UPDATES = {"odt": 2_000, "off2on": 5_000, "enoto": 5_000, "wsrl": 5_000, "spot": 13_000}
SMALL = {
    **dict.fromkeys(("hidden", "critic_hidden", "value_hidden", "model_hidden", "vae_hidden"), "[64,64]"),
    **{"width": "64", "layers": "2"},  # of transformers
    "samples": "4",  # of CQL's actions, each of three kinds
}
RATES = ("actor_lr", "critic_lr", "value_lr", "cloning_lr")  # 1e-3 in the offline phase
# Adapted, for ten critics, ten climbs and twenty updates a step take longer than the environment; and warm-ups that
# were made for hundreds of thousands of steps
ADAPTED = {
    **dict.fromkeys(("o2td3", "o2sac"), ("data.utd=1",)),  # of four, as the methods that they stand beside
    "jsrl": ("--model.critics=2",),
    "wsrl": ("--model.critics=4", "data.utd=2", "data.warmup_steps=1000"),
    "rlpd": ("--model.critics=4", "data.utd=4", "data.warmup_steps=1000"),
    "enoto": ("--model.critics=4",),
    "so2": ("--model.critics=4", "data.utd=2", "data.warmup_steps=1000", "data.batch_size=128"),
    "off2on": ("--model.members=3",),
    "pa_rl": ("--model.critics=2", "--model.candidates=4", "--model.kept=2", "--model.ascent_steps=2"),
    "pex": ("data.warmup_steps=1000",),
    "odt": ("--model.context=5", "--model.warmup_updates=200", "--data.updates=20"),
    "offline-spot": ("--model.vae_updates=3000",),
}


def jobs() -> dict[str, Job]:
    """Every step, by its name: ``offline-iql`` and ``online-pex``."""
    made: dict[str, Job] = {}
    for first, methods in METHODS.items():
        for method in methods:
            parent = None
            for phase in _composed("offline", method)["phases"]:
                owner = first if phase == "offline" else method
                name = f"{phase}-{owner}"
                made[name] = Job(phase, (f"online={owner}",), parent)
                parent = name
    return made


def typed(name: str) -> Iterator[str]:
    """The counts and the sizes of a step."""
    phase, _, method = name.partition("-")
    found = _composed(phase, method)["model"]["class_path"]
    yield from (f"--model.{option}={size}" for option, size in SMALL.items() if accepts(found, option))
    if phase == "offline":
        yield from (f"--model.{option}=1.0e-3" for option in RATES if accepts(found, option))
        yield f"steps.offline={UPDATES.get(method, STEPS['offline'])}"
    else:
        clock = "env" if phase == "online" else phase
        yield f"steps.{clock}={STEPS[clock]}"
    yield from ("++data.batch_size=64", "--data.eval_episodes=10")
    yield from (option for option in (*ADAPTED.get(method, ()), *ADAPTED.get(name, ())) if takes(name, option))
    yield "data.eval_every=2000" if phase == "online" else "data.eval_every_updates=0"


def takes(name: str, option: str) -> bool:
    """Whether a step has an ``option`` of its model's, or, where it is the online one, of its data's."""
    phase, _, method = name.partition("-")
    part, _, key = option.lstrip("-").partition("=")[0].partition(".")
    if part == "model":
        return accepts(_composed(phase, method)["model"]["class_path"], key)
    return phase == "online" or part != "data"


@cache
def _composed(phase: str, method: str) -> dict[str, Any]:
    return compose(phase, split([f"--phase={phase}", f"online={method}", "tier=medium"]))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs what is left of the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = [method for methods in METHODS.values() for method in methods]
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--datasets", nargs="+", required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=every, default=every)
    parser.add_argument(
        "--options",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="overrides of every `o2o fit` that has them; the first as --options=--model.members=1",
    )
    parser.add_argument("--workers", type=int, default=1, help="jobs at once; each takes one core")
    arguments = parser.parse_args(argv)
    made = jobs()
    names = [*ordered(made, [f"online-{method}" for method in arguments.methods])]
    own = {name: [*typed(name)] for name in names}
    chains = []
    for seed in arguments.seeds:
        for dataset in arguments.datasets:
            given = [f"--data.dataset={dataset}", f"--seed_everything={seed}"]
            more = {name: [o for o in arguments.options if "model." not in o[:8] or takes(name, o)] for name in names}
            options = {name: [*own[name], *given, *more[name]] for name in names}
            chains.append(Chain(arguments.out / Path(dataset).stem / f"seed{seed}", made, options))
    failed = run_chains(chains, arguments.workers)
    for path in failed:
        print(f"failed: {path}.log says why", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
