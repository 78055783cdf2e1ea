"""What ``o2o fit`` is going to run: every phase's typed configuration, checked before the first phase starts."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

from o2o_lightning.callbacks.checkpoint import PhaseCheckpoint
from o2o_lightning.checkpoint.handover import read_handover
from o2o_lightning.cli.command import PHASES, Command, Option, hydra_key
from o2o_lightning.cli.compose import MISSING, compose, lightning_config
from o2o_lightning.cli.lightning import Built, PhaseCLI
from o2o_lightning.cli.messages import did_you_mean
from o2o_lightning.cli.models import ARGUMENT, REQUIRED, accepts, default, known, place, value_of
from o2o_lightning.cli.phases import phases_of, student_family
from o2o_lightning.data.online import OnlineData
from o2o_lightning.data.spec import load_raw
from o2o_lightning.errors import UserError
from o2o_lightning.methods.o2.constraint import Constrained
from o2o_lightning.phases.online import Online

OURS_STAY = (
    "--trainer.callbacks adds to the phases' own, which stay. --trainer.enable_progress_bar false goes without the "
    "progress, --checkpoint.save_best false without best.ckpt; last.ckpt is what the next phase starts from"
)


BEST = [phase for phase in PHASES if phase != "reevaluate"]  # phases that are evaluated, and keep best.ckpt


@dataclass
class Step:
    """One phase of the plan."""

    phase: str
    cli: PhaseCLI


def plan(command: Command) -> tuple[list[Step], list[str]]:
    """The phases to run, each from the one before, and notes on those that the method leaves out."""
    phases, notes = phases_of(command)
    configs: dict[str, dict[str, Any]] = {}
    for phase in phases:
        composed = compose(phase, command)
        best_of = composed["best_of"]
        if not isinstance(best_of, list) or not {*best_of} <= {*BEST}:
            raise UserError(f"best_of={best_of}: a list of {', '.join(BEST)} is needed.")
        if phase == "clone" and (family := student_family(command, phases)):
            composed["model"]["init_args"]["family"] = family
        if "class_path" in composed["model"]:
            config = lightning_config(phase, composed)
            previous = next(reversed(configs), None)
            _start_from(previous, "best" if previous in best_of else "last", config["model"])
            configs[phase] = config
        else:
            notes.append(f"{phase}: {composed['model']['note']}")
    for token in command.overrides:
        part, _, name = hydra_key(token).partition(".")
        if part == "data" and all(place(f"data.{name}", config) is None for config in configs.values()):
            raise UserError(f"{token}: no phase of this run has a data option '{name}'. Leave it out.")
    options, shared = _options_by_phase(command, configs)
    steps = [Step(phase, PhaseCLI(config, options[phase], command.files)) for phase, config in configs.items()]
    return steps, [*notes, *shared]


def check(built: list[Built]) -> None:
    """What no single option's type tells; see :func:`plan` for why it is asked before anything runs.

    Raises:
        UserError: no checkpoint to start from, no number of updates, or no environment for the online phase.
    """
    for phase in built:
        name, model, trainer = phase.model.phase, phase.model, phase.trainer
        if model.init_from == MISSING:
            raise UserError(
                f"--phase {name}: it starts from a checkpoint of phase {' or '.join(model.accepts)}. "
                f"Pass --model.init_from RUN_DIR/{model.accepts[0]}/checkpoints/last.ckpt."
            )
        method = model.method
        if isinstance(method, Constrained) and method.constraint and model.init_from is None:
            raise UserError(
                "--phase online: constrained fine-tuning starts from a policy. Pass --model.init_from "
                "RUN_DIR/align/checkpoints/last.ckpt, or learn from scratch: online=td3 experiment=scratch."
            )
        if method.needs_source and model.init_from is None:
            raise UserError(
                f"--phase {name}: {method.label} goes on from a policy and its critics. Pass --model.init_from "
                "RUN_DIR/offline/checkpoints/last.ckpt, or run `--phase all`."
            )
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            raise UserError("--trainer.fast_dev_run: it writes no checkpoint to hand on. Pass experiment=quick.")
        if model.clock_name == "env_steps" and trainer.max_steps != -1:
            raise UserError(
                f"--trainer.max_steps {trainer.max_steps}: the online phase ends after --data.env_steps N "
                "(steps.env=N with --phase all). Leave --trainer.max_steps out."
            )
        if model.clock_name != "env_steps" and trainer.max_steps < 1:
            raise UserError(
                f"--trainer.max_steps {trainer.max_steps}: phase '{name}' needs a number of gradient updates, at "
                f"least 1. Pass --trainer.max_steps N (steps.{name}=N with --phase all)."
            )
        if isinstance(model, Online):
            model.check_options(cast(OnlineData, phase.datamodule), trainer.world_size)
    for before, after in pairwise(built):
        _check_best(before, after.model.init_from)
    _check_critics(built)
    last, data = built[-1], built[-1].datamodule
    unnamed = len(built) > 1 and last.model.clock_name == "env_steps" and data.env_id is None
    if unnamed and data.dataset is not None and load_raw(data.dataset, said=data.said).env_id is None:
        raise UserError(
            f"dataset {data.dataset}: it does not name its environment, and the online phase needs one. "
            "Pass --data.env_id."
        )


def _check_best(before: Built, init_from: str | None) -> None:
    """Refuses to start from a best.ckpt that the phase ``before`` does not keep, or not as it is needed."""
    if Path(str(init_from)).stem != "best":
        return
    name = before.model.phase
    if name == "align" and before.model.stop == "aligned":
        raise UserError(
            "best_of=[align]: with stop=aligned it is the last checkpoint that is aligned. Leave one of them out."
        )
    saves = [item.save_best for item in before.trainer.callbacks if isinstance(item, PhaseCheckpoint)]  # type: ignore[attr-defined]
    if not all(saves) or not before.datamodule.eval_episodes:
        raise UserError(
            f"best_of=[{name}]: --checkpoint.save_best false, or no evaluation episodes, keep no best.ckpt. Leave one "
            "of them out."
        )


def _start_from(previous: str | None, checkpoint: str, model: dict[str, Any]) -> None:
    if not accepts(model["class_path"], "init_from"):
        return
    arguments = model.setdefault("init_args", {})
    if previous is not None:
        arguments["init_from"] = f"$RUN_DIR/{previous}/checkpoints/{checkpoint}.ckpt"
    elif default(model["class_path"], "init_from") is REQUIRED:
        arguments.setdefault("init_from", MISSING)


def _options_by_phase(command: Command, configs: dict[str, dict[str, Any]]) -> tuple[dict[str, list[str]], list[str]]:
    """Gives each dotted option to the phases that know it; one that none knows is refused.

    ``--PHASE.model.X`` is for one phase alone. Returns the options by phase, and notes on those that mean different
    things to several.
    """
    chosen: dict[str, list[str]] = {phase: [] for phase in configs}
    notes: list[str] = []
    for option in command.options:
        if option.name == "config":
            continue
        if option.name == "trainer.callbacks":  # of nothing: a callback is added
            notes.append(OURS_STAY)
        if option.phase is not None and option.phase not in configs:
            name = option.tokens[0].partition("=")[0]
            raise UserError(f"{name}: this run has no phase '{option.phase}'. It has {', '.join(configs)}.")
        takers = _takers(command, option, configs) if option.phase is None else [option.phase]
        for phase in takers:
            # what no phase knows, LightningCLI refuses with the names of those that it has
            chosen[phase] += option.at(place(option.name, configs[phase]) or option.name)
        if option.phase is None and (note := _shared(option.name, {phase: configs[phase] for phase in takers})):
            notes.append(note)
    return chosen, notes


def _takers(command: Command, option: Option, configs: dict[str, dict[str, Any]]) -> list[str]:
    phases = list(configs)
    if len(phases) == 1:
        return phases
    if option.name == "trainer.max_steps":
        # the online phase counts environment steps, and nobody types the cloning phase: steps.clone=N
        return [phase for phase in phases if phase not in ("online", "clone")]
    match = ARGUMENT.match(option.name)
    if match is None:
        return phases
    part, name = match.groups()
    if part in command.values or f"{part}.class_path" in command.values:  # another class than the composed one
        return phases
    knowing = [phase for phase in phases if place(option.name, configs[phase]) is not None]
    if not knowing:
        names = [key for config in configs.values() for key in known(part, config)]
        raise UserError(f"--{part}.{name}: no phase has such an option{did_you_mean(name, names)} See `o2o fit -h`.")
    if option.name != "model.init_from":
        return knowing
    if phases[0] not in knowing:
        rest = ",".join(phases[1:])
        raise UserError(
            f"--model.init_from: phase '{phases[0]}' starts from the dataset alone, and the others from the phase "
            f"before. To go on from a checkpoint pass 'phases=[{rest}]' or one --phase."
        )
    return phases[:1]


def _shared(name: str, configs: dict[str, dict[str, Any]]) -> str | None:
    """What to say of an option of several phases that would each have another value without it."""
    match = ARGUMENT.match(name)
    if match is None or name == "model.init_from" or any(place(name, config) is None for config in configs.values()):
        return None
    part, argument = match.groups()
    values = {phase: value_of(part, argument, config) for phase, config in configs.items()}
    first = next(iter(values))
    if all(value == values[first] for value in values.values()):
        return None
    usual = ", ".join(f"{phase} ({value})" for phase, value in values.items())
    return f"--{part}.{argument} sets it in {usual}; for one phase alone write --{first}.{part}.{argument}"


def _check_critics(built: list[Built]) -> None:
    start, made = built[0].model.init_from, False
    for i, phase in enumerate(built):
        method, kept = phase.model.method, made
        made = made or method.makes_critic  # the online ones go on with the one that they need
        if kept or not method.needs_critic or phase.model.init_from is None:
            continue
        if start is not None and read_handover(start).critic is not None:
            return
        names = [step.model.phase for step in built]
        mended = ",".join([*names[:i], "reevaluate", *names[i:]])
        where = f"--phase {names[0]} ({built[0].model.algorithm})" if start is None else f"checkpoint {start}"
        raise UserError(
            f"{where}: it hands on a policy without an action-value critic, and phase '{names[i]}' starts from one. "
            f"Run the re-evaluation before it: `--phase all 'phases=[{mended}]'`."
        )
