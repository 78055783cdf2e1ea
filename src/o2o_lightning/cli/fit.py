"""``o2o fit``: one phase, or all of them one after the other."""

import os
import textwrap
import time
from pathlib import Path

import yaml

from o2o_lightning.cli.command import PHASES, Command, split
from o2o_lightning.cli.compose import compose, config_dir, groups, infer_dataset
from o2o_lightning.errors import UserError
from o2o_lightning.launch import first_process, launched_with_others

PAGE = """\
o2o fit [--phase PHASE] [--run_dir DIR] [group=option …] [--name value …]

Phases (--phase):
{phases}
  all         all of them, each from the one before (default)

Groups (group=option, * is the default):
{groups}

Options [default]; they beat --config, which beats the groups:
  --run_dir DIR            where results go [runs/DATE_TIME]; nothing in it is ever written over
  --config FILE            options from a file, as --print_config writes it
  --seed_everything N      [{seed}]
  seeds=N                  the seeds 0 … N−1 at once, seeds=[3,4,9] these; DIR/seed-0 … (docs/seeds.md)
  --data.dataset SPEC      FILE.hdf5, d4rl:NAME, minari:ID or embedded:NAME [{data[dataset]}]
  --data.env_id ID         Gymnasium environment [the dataset's own]
  --model.init_from CKPT   where a phase starts from, e.g. runs/a/offline/checkpoints/last.ckpt
  --trainer.max_steps N    gradient updates of an offline phase
  --data.env_steps N       environment steps of the online phase
  --data.eval_every N      environment steps between evaluations [{data[eval_every]}]
  --data.eval_episodes N   episodes of an evaluation [{data[eval_episodes]}]
  steps.offline=N steps.reevaluate=N steps.align=N steps.env=N
                           the counts of --phase all [{steps}]
  phases=auto              only the phases of --phase all that the offline method needs

Examples:
  o2o fit experiment=quick --run_dir runs/quick
  o2o fit --phase all --data.dataset walker2d.hdf5 --run_dir runs/walker
  o2o fit --phase align --model.init_from runs/a/reevaluate/checkpoints/last.ckpt --run_dir runs/b

`o2o fit --phase align --help` explains each option of a phase, its data and the Trainer;
`o2o fit --phase align --print_config > a.yaml` writes them all with their values.
"""


def main(argv: list[str]) -> int:
    """Runs ``o2o fit``."""
    command = split(argv)
    wants_help = bool(command.named("help"))
    if not argv or (wants_help and command.phase == "all"):
        print(_help(), end="")
        return 0
    # the help needs none of what these import
    from o2o_lightning.cli.page import phase_page
    from o2o_lightning.cli.plan import plan
    from o2o_lightning.cli.run import run, say
    from o2o_lightning.cli.seeds import run as run_seeds
    from o2o_lightning.cli.seeds import seeds_of

    if wants_help:
        print(phase_page(command), end="")
        return 0
    printing, command = command.named("print_config"), command.without("print_config")
    if printing and command.phase == "all":
        raise UserError(f"--print_config prints one phase. Add --phase {', '.join(PHASES)}.")
    if printing and printing[-1].value is not None:
        raise UserError(f"{printing[-1].tokens[0]}: it takes no value. Write `--print_config`.")
    seeds = seeds_of(command)
    plans = {seed: plan(command.of_seed(seed)) for seed in (seeds or ())[: 1 if printing else None]}
    steps, notes = plan(command) if seeds is None else plans[seeds[0]]
    if printing:
        steps = [step for step in steps if step.phase == command.phase]
        print(*(step.cli.written() for step in steps), sep="", end="")
    if printing or not steps:
        say(*notes)
        return 0
    guess = infer_dataset(command)[1]
    record = {"phase": command.phase, "phases": [step.phase for step in steps], "overrides": command.overrides}
    record |= {"options": command.tokens, "cwd": os.getcwd()}
    run_dir, notes = Path(command.run_dir or _new_run_dir()), [*notes, *([guess] if guess else [])]
    if seeds is None:
        run(steps, run_dir, notes, record)
    else:
        run_seeds({seed: steps for seed, (steps, _) in plans.items()}, run_dir, notes, {**record, "seeds": seeds})
    return 0


def _new_run_dir() -> str:
    # DDP's children run this command again, and must not choose for themselves
    inherited = None if first_process() else os.environ.get("O2O_RUN_DIR")
    if inherited is None and launched_with_others():
        raise UserError("--run_dir: torchrun or SLURM runs this command several times. Name one directory for all.")
    os.environ["O2O_RUN_DIR"] = inherited or time.strftime("runs/%Y-%m-%d_%H-%M-%S")
    return os.environ["O2O_RUN_DIR"]


def _help() -> str:
    """What fits on a screen, read from ``configs/`` so that it cannot go stale."""
    composed = compose("offline", Command())
    steps = composed["steps"]
    return PAGE.format(
        phases="\n".join(f"  {phase:<12}{_first_comment(phase)}" for phase in PHASES),
        groups="\n".join(_group_lines()),
        seed=composed["seed_everything"],
        data=composed["data"],
        steps=", ".join(f"{steps[key]:,}" for key in ("offline", "reevaluate", "align", "env")),
    )


def _first_comment(phase: str) -> str:
    lines = (config_dir() / "phase" / f"{phase}.yaml").read_text(encoding="utf-8").splitlines()
    comment = next(line for line in lines if line.startswith("# ") and "@package" not in line)
    return comment[2].lower() + comment[3:]


def _group_lines() -> list[str]:
    config = yaml.safe_load((config_dir() / "config.yaml").read_text(encoding="utf-8"))
    default = {key: option for entry in config["defaults"] if isinstance(entry, dict) for key, option in entry.items()}
    lines = []
    for group, options in groups().items():
        if group == "phase" or len(options) == 1:  # no choice
            continue
        shown = [option + "*" * (option == default.get(group)) for option in options]
        named = [option for option in shown if not option.endswith("-v2")]
        if len(named) < len(shown):
            named += [f"and {len(shown) - len(named)} of D4RL's such as hopper-medium-v2"]
        lines.append(textwrap.fill(f"  {group:<12}{' '.join(named)}", 105, subsequent_indent=" " * 14))
    return lines
