"""``o2o resume``: goes on with a run that stopped, as if it had not."""

import os
import shutil
from pathlib import Path
from typing import Any

import yaml

from o2o_lightning.callbacks.metrics import MetricsFile
from o2o_lightning.checkpoint.handover import read_checkpoint, read_handover
from o2o_lightning.checkpoint.io import remove_temporaries
from o2o_lightning.checkpoint.run import lock, read_config, read_plan, read_summary, seed_folder
from o2o_lightning.cli.command import Option, split
from o2o_lightning.cli.estimate import Estimate
from o2o_lightning.cli.lightning import Built, PhaseCLI
from o2o_lightning.cli.models import place, rule_of
from o2o_lightning.cli.outcome import outcome
from o2o_lightning.cli.plan import check, plan
from o2o_lightning.cli.run import LAST, say, write_run_summary
from o2o_lightning.cli.seeds import Start, Together, entry_of_seed, write_summary
from o2o_lightning.errors import UserError
from o2o_lightning.launch import first_process
from o2o_lightning.limits import read_yaml

USAGE = """\
o2o resume RUN_DIR [options]

Goes on with the phase that was interrupted, from its last checkpoint, and then with the phases that follow.
The result is that of a run that was never interrupted, bit for bit (same machine, libraries and threads).

options that may change on the way, e.g. `--data.env_steps 200000`:
  {safe}
"""
# What changes how long a run takes and how it is watched; anything else would make it another run.
LENGTH = ("trainer.max_steps", "data.env_steps")
SAFE = (
    *LENGTH, "trainer.logger", "trainer.log_every_n_steps", "trainer.enable_progress_bar",
    "data.eval_every", "data.eval_every_updates", "data.memmap", "data.memory_limit_gb", "data.env_process",
)  # fmt: skip


def main(argv: list[str]) -> int:
    """Runs ``o2o resume``."""
    if argv and argv[0] in ("-h", "--help"):
        print(USAGE.format(safe=", ".join(f"--{name}" for name in SAFE)), end="")
        return 0
    if not argv or argv[0].startswith("-"):
        raise UserError("o2o resume: no run directory. Write `o2o resume RUN_DIR`, then options.")
    # a process that Lightning starts runs this command again, from where the phase runs
    inherited = None if first_process() else os.environ.get("O2O_RUN_DIR")
    run_dir, changes = Path(inherited or argv[0]).resolve(), _changes(argv[1:])
    os.environ["O2O_RUN_DIR"] = str(run_dir)
    entries = read_plan(run_dir)
    if not entries:
        raise UserError(f"{argv[0]}: no run of o2o is in it. Pass the --run_dir of one that had begun.")
    planned = {phase: entry for entry in entries for phase in entry["phases"]}
    lengths = [change.name for change in changes if change.name in LENGTH]
    for change in changes:  # the phase that it is of may begin much later
        count = read_yaml(str(change.value), change.tokens[0]) if change.name in LENGTH else 1
        if type(count) is not int or count < 1:  # true is one as well
            raise UserError(f"--{change.name} {change.value}: a whole number, at least 1, is needed.")
    if "data.env_steps" in lengths and "online" not in planned:
        raise UserError(f"--data.env_steps: this run has no online phase, only {', '.join(planned)}. Leave it out.")
    if first_process():
        lock(run_dir)
        remove_temporaries(run_dir)
    here, seeds = os.getcwd(), entries[-1].get("seeds")
    try:
        going = _one(planned, run_dir, changes) if seeds is None else _seeds(planned, seeds, run_dir, changes)
    finally:
        os.chdir(here)
    if not going:
        say(f"{argv[0]}: nothing to go on with, all of it is finished.")
    return 0


def _one(planned: dict[str, dict[str, Any]], run_dir: Path, changes: list[Option]) -> bool:
    """Goes on with the phases that are left; whether there are any."""
    left = _left(planned, run_dir, changes)
    for phase in left:
        built, checkpoint = _start(phase, planned[phase], run_dir, changes, phase == left[0])
        built.fit(checkpoint)
        write_run_summary(run_dir)
    if left and first_process():
        say(*outcome(run_dir))
    if not left:
        write_run_summary(run_dir)  # the kill may have come just before
    return bool(left)


def _seeds(planned: dict[str, dict[str, Any]], seeds: list[int], run_dir: Path, changes: list[Option]) -> bool:
    """The same of several seeds, each from its own checkpoint."""
    together, folders = Together(run_dir, seeds), {seed: seed_folder(run_dir, seed) for seed in seeds}
    left = {seed: _left(planned, folders[seed], changes) for seed in seeds}
    for seed in seeds:
        if not left[seed]:
            write_run_summary(folders[seed])
    for phase in planned:
        together.fit(phase, {
            seed: _start(phase, entry_of_seed(planned[phase], seed), folders[seed], changes, phase == left[seed][0])
            for seed in together.living
            if phase in left[seed]
        })  # fmt: skip
    write_summary(run_dir, seeds)
    together.end()
    return any(left.values())


def _left(planned: dict[str, Any], run_dir: Path, changes: list[Option]) -> list[str]:
    """The phases that are not finished, or the one that is to become longer; an alignment that fell short may be."""
    lengths = [change.name for change in changes if change.name in LENGTH]
    longer = "trainer.max_steps" in lengths
    left = [phase for phase in planned if not _ended(run_dir / phase, longer)]
    if not left and lengths:
        left = ["online" if "data.env_steps" in lengths else [*planned][-1]]
    return left


def _ended(folder: Path, longer: bool) -> bool:
    """Whether a phase has ended; one that is to be ``longer`` has not where it was to be aligned and is not."""
    return (folder / "summary.json").exists() and not (longer and read_summary(folder).get("aligned") is False)


def _start(phase: str, entry: dict[str, Any], run_dir: Path, changes: list[Option], first: bool) -> Start:
    """A phase that goes on, with the checkpoint it goes on from, or one that begins."""
    # a number of updates is meant for the phase that was interrupted, not for those that follow
    given = [change for change in changes if first or change.name != "trainer.max_steps"]
    if Path(entry["cwd"]).is_dir():
        os.chdir(entry["cwd"])  # paths of the command are relative to where it was given
    begun = (run_dir / phase / LAST).exists()
    if not begun and (run_dir / phase / "summary.json").exists():
        raise UserError(
            f"{run_dir / phase / LAST}: missing, and a phase that has ended goes on from nothing else. Pass what "
            "is left to a new run: --model.init_from."
        )
    built, checkpoint = _continue(phase, run_dir, given) if begun else (_begin(phase, entry, run_dir, given), None)
    built.after = Estimate(entry.get("estimate", {})).after(phase)
    return built, checkpoint


def _begin(phase: str, entry: dict[str, Any], run_dir: Path, changes: list[Option]) -> Built:
    """Starts a phase of the ``o2o fit`` that ``entry`` remembers: one that follows, or has no checkpoint yet."""
    given = [
        token
        for change in changes
        if change.name != "data.env_steps" or "online" in entry["phases"]
        for token in change.at(f"{phase}.{change.name}" if change.name == "trainer.max_steps" else change.name)
    ]
    command = split(["--phase", entry["phase"], *entry["overrides"], *entry["options"], *given])
    step = next(step for step in plan(command)[0] if step.phase == phase)
    built = step.cli.build(run_dir, phase, entry)
    check([built])
    if (run_dir / phase / "config.yaml").exists():
        for logger in built.trainer.loggers:
            if isinstance(logger, MetricsFile):
                logger.keep(0)  # what is there, perhaps elsewhere, are rows of the attempt that was killed
    if first_process():
        shutil.rmtree(run_dir / phase, ignore_errors=True)
    return built


def _continue(phase: str, run_dir: Path, changes: list[Option]) -> Start:
    """Goes on with one phase from its last checkpoint."""
    checkpoint, written = run_dir / phase / LAST, run_dir / phase / "config.yaml"
    read_handover(checkpoint, (phase,), "o2o resume")
    found = read_checkpoint(checkpoint)
    if any(name.startswith("agent.") for name in found["state_dict"]):
        raise UserError(
            f"checkpoint {checkpoint}: version 0.1 began this phase, and its training can't go on here. Finish it with "
            f"0.1, or start anew from the phase before it: `o2o fit --phase {phase} --model.init_from CKPT`."
        )
    config = yaml.safe_load(read_config(written))
    trainer = config["trainer"]
    clock = found["o2o_progress"]["env_steps" if phase == "online" else "updates"]
    if trainer.get("logger") is not None:
        trainer["logger"] = going_on(trainer["logger"], clock, found.get("o2o_resume", {}).get("loggers", []))
    if "method" in config["model"].get("init_args", {}):
        rule_of(config["model"]["init_args"]["method"]["class_path"])  # perhaps a file of the user's, here
    places = ((change, place(change.name, config)) for change in changes)
    options = [token for change, name in places if name is not None for token in change.at(name)]
    built = PhaseCLI(config, options).build(run_dir, phase)
    check([built])
    say(f"{phase}: going on from {checkpoint}")
    return built, checkpoint


def going_on(config: Any, clock: int, versions: list[Any]) -> Any:
    """A Trainer's ``logger`` (one, or a list) for a phase that goes on from ``clock``, so that no row is there twice.

    The CSV file cuts off its own rows. TensorBoard hides what its file has from ``purge_step`` on; W&B goes on with the
    run of the same id. ``versions``: each logger's own name of the run, as the checkpoint has it.
    """
    if isinstance(config, list):
        known = [*versions, *[None] * len(config)]
        return [going_on(logger, clock, known[i : i + 1]) for i, logger in enumerate(config)]
    if not isinstance(config, dict) or "class_path" not in config:
        return config
    name, extra = config["class_path"].rpartition(".")[2], config.get("dict_kwargs") or {}
    if name == "TensorBoardLogger":  # what was logged at the clock itself stays
        return {**config, "dict_kwargs": {**extra, "purge_step": clock + 1}}
    if name == "WandbLogger" and versions and versions[0]:
        arguments = {**(config.get("init_args") or {}), "id": versions[0]}
        return {**config, "init_args": arguments, "dict_kwargs": {**extra, "resume": "allow"}}
    return config


def _changes(argv: list[str]) -> list[Option]:
    """The options of the command line; :class:`UserError` for one that would make it another run."""
    command, only = split(argv), f"only {', '.join(f'--{name}' for name in SAFE)} may change."
    if command.own:
        typed = command.own[0].tokens[0]
        raise UserError(f"{typed}: the run's own directory and phases stay. Write `o2o resume RUN_DIR`.")
    if command.overrides:
        raise UserError(f"'{command.overrides[0]}': a resumed run keeps its configuration; {only}")
    for option in command.options:
        name = option.name if option.phase is None else f"{option.phase}.{option.name}"
        if name not in SAFE and not name.startswith("trainer.logger"):
            raise UserError(
                f"--{name}: it would make another run of this one; {only} For a new run from this policy use "
                "`o2o fit --model.init_from CKPT`."
            )
    return command.options
