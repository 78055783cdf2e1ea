"""What ``o2o fit`` is going to run: every phase's typed configuration, checked before the first phase starts."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from typing import Any

from o2o_lightning.checkpoint.handover import read_handover
from o2o_lightning.cli.automatic import AUTO, chosen_phases
from o2o_lightning.cli.cloning import with_cloning
from o2o_lightning.cli.compose import MISSING, PHASES, Command, compose, lightning_config
from o2o_lightning.cli.lightning import Built, PhaseCLI, accepts, argument_names, default, required
from o2o_lightning.cli.messages import did_you_mean
from o2o_lightning.errors import UserError
from o2o_lightning.phases.online.base import OnlinePhase

_PART = re.compile(r"--(model|data)\.(?:init_args\.)?(\w+)")
_OWN = re.compile(rf"--({'|'.join(PHASES)})\.(?=model\.|data\.|trainer\.)")
_ADDED = re.compile(r"\+{0,2}data\.(\w+)=")
_SPECIAL = ("class_path", "init_args", "dict_kwargs", "help")


@dataclass
class Step:
    """One phase of the plan."""

    phase: str
    cli: PhaseCLI


def plan(command: Command) -> tuple[list[Step], list[str]]:
    """The phases to run, each from the one before, and notes on those that the method leaves out."""
    phases, choice = _phases(command)
    phases, cloning = with_cloning(command, phases)
    configs, notes = {}, [note for note in (choice, cloning) if note is not None]
    for phase in phases:
        composed = compose(phase, command)
        if "class_path" in composed["model"]:
            configs[phase] = lightning_config(composed)
        else:
            notes.append(f"{phase}: {composed['model']['note']}")
    previous = None
    for phase, config in configs.items():
        _start_from(previous, config["model"])
        previous = phase
    _check_data_keys(command, configs)
    options, shared = _options_by_phase(command, configs)
    return [Step(phase, PhaseCLI(config, options[phase])) for phase, config in configs.items()], [*notes, *shared]


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
        if isinstance(model, OnlinePhase) and model.constraint and model.init_from is None:
            raise UserError(
                "--phase online: constrained fine-tuning starts from a policy. Pass --model.init_from "
                "RUN_DIR/align/checkpoints/last.ckpt, or learn from scratch: online=td3 experiment=scratch."
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
    _check_critics(built)
    last = built[-1]
    if len(built) > 1 and last.model.clock_name == "env_steps":
        _check_environment(last)


def phase_help(command: Command) -> None:
    """Prints every option of a phase: its own, its data's, and the Trainer's."""
    config = lightning_config(compose(command.phase, command))
    for part in ("model", "data"):
        with contextlib.suppress(SystemExit):
            PhaseCLI(config, [f"--{part}.help={config[part]['class_path']}"])
        print()
    with contextlib.suppress(SystemExit):
        PhaseCLI(config, ["--help"])


def _phases(command: Command) -> tuple[list[str], str | None]:
    if command.phase != "all":
        return [command.phase], None
    phases = compose("offline", command)["phases"]
    if phases == AUTO:
        return chosen_phases(command)
    if not isinstance(phases, list) or not phases or len({*phases}) < len(phases) or not {*phases} <= {*PHASES}:
        raise UserError(f"phases={phases}: a list of {', '.join(PHASES)} is needed, each at most once, or auto.")
    return phases, None


def _start_from(previous: str | None, model: dict[str, Any]) -> None:
    if not accepts(model["class_path"], "init_from"):
        return
    arguments = model.setdefault("init_args", {})
    if previous is not None:
        arguments["init_from"] = f"$RUN_DIR/{previous}/checkpoints/last.ckpt"
    elif required(model["class_path"], "init_from"):
        arguments.setdefault("init_from", MISSING)


def _options_by_phase(command: Command, configs: dict[str, dict[str, Any]]) -> tuple[dict[str, list[str]], list[str]]:
    """Gives each dotted option to the phases that know it; one that none knows is refused.

    ``--PHASE.model.X`` is for one phase alone. Returns the options by phase, and notes on those that mean different
    things to several.
    """
    chosen: dict[str, list[str]] = {phase: [] for phase in configs}
    notes: list[str] = []
    for name, *values in grouped(command.options):
        own = _OWN.match(name)
        if own is not None:
            if own[1] not in configs:
                raise UserError(f"{name}: this run has no phase '{own[1]}'. It has {', '.join(configs)}.")
            chosen[own[1]] += [f"--{name[own.end() :]}", *values]
            continue
        takers = _takers(command, name, configs)
        for phase in takers:
            chosen[phase] += [name, *values]
        if (note := _shared(name, takers, configs)) is not None:
            notes.append(note)
    return chosen, notes


def _shared(option: str, phases: list[str], configs: dict[str, dict[str, Any]]) -> str | None:
    """What to say of an option of several phases that would each have another value without it."""
    match = _PART.match(option)
    if match is None or match[2] in (*_SPECIAL, "init_from"):
        return None
    part, name = match.groups()
    own = [configs[phase][part] for phase in phases]
    if len(own) < 2 or not all(accepts(config["class_path"], name) for config in own):
        return None
    values = [config.get("init_args", {}).get(name, default(config["class_path"], name)) for config in own]
    if all(value == values[0] for value in values):
        return None
    usual = ", ".join(f"{phase} ({value})" for phase, value in zip(phases, values, strict=True))
    return f"--{part}.{name} sets it in {usual}; for one phase alone write --{phases[0]}.{part}.{name}"


def _check_data_keys(command: Command, configs: dict[str, dict[str, Any]]) -> None:
    for token in command.overrides:
        match = _ADDED.match(token)
        if match and not any(accepts(config["data"]["class_path"], match[1]) for config in configs.values()):
            raise UserError(f"{token}: no phase of this run has a data option '{match[1]}'. Leave it out.")


def _takers(command: Command, option: str, configs: dict[str, dict[str, Any]]) -> list[str]:
    phases = list(configs)
    if len(phases) == 1:
        return phases
    if option.partition("=")[0] == "--trainer.max_steps":
        # the online phase counts environment steps, and nobody types the cloning phase: steps.clone=N
        return [phase for phase in phases if phase not in ("online", "clone")]
    match = _PART.match(option)
    if match is None or match[2] in _SPECIAL:
        return phases
    part, name = match.groups()
    if command.option(f"--{part}") or command.option(f"--{part}.class_path"):
        return phases
    knowing = [phase for phase in phases if accepts(configs[phase][part]["class_path"], name)]
    if not knowing:
        known = [key for config in configs.values() for key in argument_names(config[part]["class_path"])]
        raise UserError(f"--{part}.{name}: no phase has such an option{did_you_mean(name, known)} See `o2o fit -h`.")
    if (part, name) != ("model", "init_from"):
        return knowing
    if phases[0] not in knowing:
        rest = ",".join(phases[1:])
        raise UserError(
            f"--model.init_from: phase '{phases[0]}' starts from the dataset alone, and the others from the phase "
            f"before. To go on from a checkpoint pass 'phases=[{rest}]' or one --phase."
        )
    return phases[:1]


def grouped(options: list[str]) -> list[list[str]]:
    """Options, each with its values."""
    groups: list[list[str]] = []
    for token in options:
        if token.startswith("--") or not groups:
            groups.append([token])
        else:
            groups[-1].append(token)
    return groups


def _check_critics(built: list[Built]) -> None:
    start, made = built[0].model.init_from, False
    for i, phase in enumerate(built):
        made = made or phase.model.makes_critic
        if made or not phase.model.needs_critic or phase.model.init_from is None:
            continue
        if start is not None and read_handover(start).critic is not None:
            return
        names = [step.model.phase for step in built]
        mended = ",".join([*names[:i], "reevaluate", *names[i:]])
        where = f"--phase {names[0]} ({built[0].model.method})" if start is None else f"checkpoint {start}"
        raise UserError(
            f"{where}: it hands on a policy without an action-value critic, and phase '{names[i]}' starts from one. "
            f"Run the re-evaluation before it: `--phase all 'phases=[{mended}]'`."
        )


def _check_environment(online: Built) -> None:
    data = online.datamodule
    if data.env_id is not None or data.dataset is None:
        return
    from o2o_lightning.data.spec import load_raw

    if load_raw(data.dataset).env_id is None:
        raise UserError(
            f"dataset {data.dataset}: it does not name its environment, and the online phase needs one. "
            "Pass --data.env_id."
        )
