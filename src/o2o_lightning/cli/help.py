"""The help of ``o2o fit``: what fits on a screen, read from ``configs/`` so that it cannot go stale."""

from __future__ import annotations

import textwrap

import yaml

from o2o_lightning.cli.command import PHASES, Command
from o2o_lightning.cli.compose import compose, config_dir, groups

WIDTH = 100

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


def fit_help() -> str:
    """The page, about forty lines."""
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
        if group == "phase":
            continue
        shown = [option + "*" * (option == default.get(group)) for option in options]
        named = [option for option in shown if not option.endswith("-v2")]
        if len(named) < len(shown):
            named += [f"and {len(shown) - len(named)} of D4RL's such as hopper-medium-v2"]
        lines.append(textwrap.fill(f"  {group:<12}{' '.join(named)}", WIDTH, subsequent_indent=" " * 14))
    return lines
