"""``o2o data``: look at datasets, list them, cut smaller ones, make new ones."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from o2o_lightning.cli.arguments import Parser

if TYPE_CHECKING:
    from o2o_lightning.data.raw import RawDataset, Said
    from o2o_lightning.envs.make import EnvSpec

LEVELS = ("random", "medium", "medium-replay", "expert")
MAKE = """\
Makes a dataset from an environment, by D4RL's protocol: SAC from scratch, stopped when its sampled policy reaches the
level, then stochastic rollouts (medium, expert) or the replay buffer so far (medium-replay); or uniformly random
actions. The same command given again goes on with one that was interrupted, and ends with the same bytes. What else is
typed are options of `o2o fit` for the training.
"""
_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red", "skip": "dim"}


def main(argv: list[str]) -> int:
    """Runs ``o2o data ARGV`` and returns the exit code: 1 when a check fails, else 0."""
    known = parser()
    arguments, rest = known.parse_known_args(argv)
    arguments.rest = rest
    if arguments.command == "make":
        from o2o_lightning.cli.data_make import make

        return make(arguments)
    if rest:
        known.error(f"unrecognized arguments: {' '.join(rest)}")
    return {"info": show, "check": _check, "list": _list, "cut": _cut}[arguments.command](arguments)


def parser() -> argparse.ArgumentParser:
    """The options of every sub-command."""
    whole = Parser(prog="o2o data", description=__doc__)
    commands = whole.add_subparsers(dest="command", metavar="COMMAND", required=True)
    spec_help = "path/to/file.hdf5, d4rl:NAME[#sha256=HEX], minari:ID or embedded:NAME"

    info = commands.add_parser("info", help="what a dataset holds: counts, returns, score, provenance")
    check = commands.add_parser("check", help="look a dataset over; exit code 1 when something is wrong")
    for command in (info, check):
        command.add_argument("spec", metavar="SPEC", help=spec_help)
        command.add_argument("--env_id", help="environment to hold it against (default: the dataset's own)")
        command.add_argument("--env_kwargs", **KWARGS)
        _meaning(command)
        command.add_argument("--json", action="store_true", help="print JSON")
    check.add_argument("--replay_rows", type=int, default=200, help="rows replayed in the simulator (default: 200)")

    listing = commands.add_parser("list", help="datasets that can be named")
    listing.add_argument("--json", action="store_true", help="print JSON")

    cut = commands.add_parser("cut", help="write a smaller copy of an HDF5 dataset")
    cut.add_argument("source", metavar="SRC", help="an HDF5 dataset")
    cut.add_argument("target", metavar="DST", help="the file to write; must not exist")
    cut.add_argument("--transitions", type=int, help="keep the first rows only")
    _meaning(cut)
    cut.add_argument("--keep_infos", action="store_true", help="keep infos/* (simulator states, log-probabilities)")
    cut.add_argument("--keep_next", action="store_true", help="keep next_observations")

    made = commands.add_parser("make", help="record one: an environment is enough", description=MAKE)
    made.add_argument("--env", "--env_id", "--data.env_id", dest="env_id", metavar="ID", help="in Gymnasium")
    made.add_argument("--env_kwargs", "--data.env_kwargs", dest="env_kwargs", **KWARGS)
    made.add_argument("--level", choices=LEVELS, help="of the policy that acts")
    made.add_argument("--transitions", type=int, help="rows; of medium-replay the newest (default: the whole replay)")
    made.add_argument("--output", help="file to write, or Minari's id; must not exist (default: ENV-LEVEL.hdf5)")
    made.add_argument("--format", default="hdf5", choices=("hdf5", "minari"), help="default: hdf5")
    made.add_argument("--stop_score", type=float, help="score that ends training (default of the medium ones: 33.3)")
    made.add_argument("--stop_return", type=float, help="return that ends training, instead of a score")
    made.add_argument("--train_steps", type=int, help="most environment steps of training (default: 1000000)")
    made.add_argument("--policy", metavar="CKPT", help="roll out this checkpoint's policy instead of training one")
    made.add_argument("--run_dir", help="keep the training here, for other datasets of it (default: with the output)")
    made.add_argument("--seed", "--seed_everything", type=int, default=0, help="default: 0")
    made.add_argument("--device", choices=("auto", "cpu", "gpu", "cuda", "mps"), help="to train on (default: auto)")
    made.add_argument("--json", action="store_true", help="print JSON")
    return whole


def _meaning(command: argparse.ArgumentParser) -> None:
    """Options of `o2o fit` that say what a dataset does not."""
    units, ends = ("native", "unit", "clip"), ("terminated", "done")
    command.add_argument(
        "--actions", "--data.actions", dest="actions", choices=units, help="what actions are counted in"
    )
    command.add_argument("--terminals", "--data.terminals", dest="terminals", choices=ends, help="what they mean")
    layout: dict[str, Any] = {"type": _names, "default": (), "metavar": "KEYS", "help": "parts of observations: a,b"}
    command.add_argument("--layout", "--data.observation_layout", dest="layout", **layout)


def _said(arguments: argparse.Namespace) -> Said:
    from o2o_lightning.data.raw import Said

    given = vars(arguments)
    limit: int | None = (given.get("env_kwargs") or {}).get("max_episode_steps")
    meaning: Any = given.get("terminals") or "auto"
    return Said(given.get("env_id"), limit, given.get("actions"), meaning, given.get("layout", ()))


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.strip("[]").split(","))


def show(arguments: argparse.Namespace) -> int:
    """Prints what the dataset ``spec`` holds, for ``env_id`` and as ``json`` where asked."""
    from o2o_lightning.data.mapped import load_store
    from o2o_lightning.data.spec import load_raw
    from o2o_lightning.envs.scores import normalized_score, reference_scores

    raw = load_raw(arguments.spec, said=_said(arguments))
    env, note = _environment(raw, arguments.env_id, arguments.env_kwargs or {})
    manifest = load_store(raw, env).manifest
    reference, mean = reference_scores(raw.source) or reference_scores(manifest.env_id or ""), manifest.return_mean
    score = None if reference is None or mean is None else normalized_score(mean, reference)
    facts = {**manifest.to_dict(), "normalized_score": score}
    if arguments.json:
        print(json.dumps({**facts, "metadata": dict(raw.metadata)}, indent=2, default=str))
        return 0
    from rich.console import Console

    from o2o_lightning.cli.show import show_facts

    shown = {key.replace("_", " "): _text(value) for key, value in facts.items()}
    show_facts(arguments.spec, shown, {key: _text(value) for key, value in raw.metadata.items()})
    if note:
        Console().print(note, style="yellow", markup=False)
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from o2o_lightning.data.check import check, passed
    from o2o_lightning.data.spec import load_raw

    raw = load_raw(arguments.spec, check=False, said=_said(arguments))
    checks = check(raw, arguments.env_id, arguments.replay_rows, kwargs=arguments.env_kwargs or {})
    code = 0 if passed(checks) else 1
    if arguments.json:
        report = {"spec": arguments.spec, "passed": code == 0, "checks": [row._asdict() for row in checks]}
        print(json.dumps(report, indent=2))
        return code
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("check", "", "detail", title=escape(arguments.spec))
    for row in checks:
        table.add_row(row.name, f"[{_COLOURS[row.status]}]{row.status}[/]", escape(row.detail))
    Console().print(table)
    return code


def _list(arguments: argparse.Namespace) -> int:
    from o2o_lightning.data.spec import list_specs
    from o2o_lightning.envs.scores import reference_scores

    rows = [
        {**entry._asdict(), "reference": reference_scores(entry.spec) or reference_scores(entry.env_id or "")}
        for entry in list_specs()
    ]
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("spec", no_wrap=True)
    for title in ("environment", "where", "returns of score 0 … 100"):
        table.add_column(title)
    for row in rows:
        span = "–" if row["reference"] is None else "{:.1f} … {:.1f}".format(*row["reference"])
        table.add_row(row["spec"], row["env_id"] or "–", row["where"], span)
    Console().print(table)
    return 0


def _cut(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from o2o_lightning.recording.writer import cut

    kept = arguments.transitions, arguments.keep_infos, arguments.keep_next
    rows = cut(arguments.source, arguments.target, *kept, _said(arguments))
    size = Path(arguments.target).stat().st_size / 1e6
    print(f"{arguments.target}: {rows} transitions, {size:.1f} MB")
    return 0


def _mapping(text: str) -> dict[str, Any]:
    from o2o_lightning.envs.make import plain
    from o2o_lightning.errors import refusing
    from o2o_lightning.limits import read_yaml

    with refusing(f"--env_kwargs {text}: it cannot be read", "Write it as '{mass: 2.0}'."):
        value = read_yaml(text, "--env_kwargs")
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text} is no mapping")
    plain(value)
    return value


KWARGS: dict[str, Any] = {"type": _mapping, "metavar": "MAP", "help": "JSON or YAML for gymnasium.make: '{mass: 2.0}'"}


def _environment(raw: RawDataset, env_id: str | None, kwargs: dict[str, Any]) -> tuple[EnvSpec | None, str | None]:
    """The environment's sizes, and a note where the dataset's own environment cannot be made here."""
    from o2o_lightning.envs.make import env_spec, foreign_id
    from o2o_lightning.errors import UserError

    unnamed = "The dataset names no environment: actions are unchecked. Pass --env_id to hold it against one."
    try:
        wanted = env_id or foreign_id(raw.env_id, "the dataset")
        if wanted is None:
            return None, unnamed
        return env_spec(wanted, raw.observations.shape[1], raw.layout, kwargs), None
    except UserError as error:
        if env_id is not None:
            raise
        return None, f"Actions are unchecked: {error}"


def _text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, dict):
        return ", ".join(f"{key} {entry}" for key, entry in value.items())
    if isinstance(value, list):
        return "[" + ", ".join(_text(entry) for entry in value) + "]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
