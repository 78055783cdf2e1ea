"""LightningCLI over a composed configuration: typed, overridable, printable, and quiet about what it is made of."""

from __future__ import annotations

import importlib
import logging
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import lightning as L
import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace
from jsonargparse._parameter_resolvers import get_signature_parameters
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from o2o_lightning.callbacks.run_directory import RunDirectory
from o2o_lightning.data.module import OfflineData
from o2o_lightning.errors import UserError
from o2o_lightning.phases.base import Phase


@dataclass
class Built:
    """One phase, ready to run."""

    trainer: L.Trainer
    model: Phase
    datamodule: OfflineData


class PhaseCLI(LightningCLI):
    """Parses, checks and instantiates; running is left to the caller, so nothing re-reads ``sys.argv``."""

    def __init__(self, args: list[str], places: dict[str, str]) -> None:
        self.places = places
        super().__init__(
            model_class=Phase,
            datamodule_class=OfflineData,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None,
            auto_configure_optimizers=False,
            run=False,
            parser_kwargs={"allow_abbrev": False, "exit_on_error": False},
            args=args,
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        # LightningCLI warns when arguments are given both here and in sys.argv; here they always are
        self.config = parser.parse_args(args)

    def before_instantiate_classes(self) -> None:
        self.written = self.parser.dump(self.config, skip_unset=False)
        self.config = cast(Namespace, _substitute(self.config, self.places))


def build(
    config: dict[str, Any], options: list[str], run_dir: Path, phase: str, command: dict[str, Any] | None = None
) -> Built:
    """Instantiates trainer, phase and data from a composed configuration and the user's dotted options."""
    cli = _run_cli(config, options, {"$RUN_DIR": str(run_dir), "$PHASE": phase})
    if not isinstance(cli.model, Phase) or cli.model.phase != phase:
        name, belongs = type(cli.model).__name__, getattr(cli.model, "phase", "?")
        raise UserError(f"--model: {name} is not of phase '{phase}'. Pass --phase {belongs}.")
    cli.model.config = yaml.safe_load(cli.written)
    cli.trainer.callbacks.append(RunDirectory(run_dir, cli.written, command))  # type: ignore[attr-defined]
    _reorder(cli.trainer)
    return Built(cli.trainer, cli.model, cast(OfflineData, cli.datamodule))


def dump(config: dict[str, Any], options: list[str]) -> str:
    """The whole typed configuration as YAML, as ``--config`` takes it back."""
    parser = _Parser().parser
    return str(parser.dump(_parse(parser, config, options), skip_unset=False))


def accepts(class_path: str, name: str) -> bool:
    """Whether the class takes the argument ``name``, itself or through ``**kwargs``."""
    module, _, attribute = class_path.rpartition(".")
    taken = get_signature_parameters(getattr(importlib.import_module(module), attribute), "__init__")
    return name in {parameter.name for parameter in taken}


class _Parser(PhaseCLI):
    """Only the parser, for printing a configuration."""

    def __init__(self) -> None:
        super().__init__([], {})

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = Namespace()  # type: ignore[no-untyped-call]

    def before_instantiate_classes(self) -> None:
        return

    def instantiate_classes(self) -> None:
        return


def _run_cli(config: dict[str, Any], options: list[str], places: dict[str, str]) -> PhaseCLI:
    _quiet()
    try:
        return PhaseCLI(_arguments(config, options), places)
    except (ArgumentError, TypeError, ValueError) as error:
        raise UserError(_one_line(error)) from error


def _parse(parser: ArgumentParser, config: dict[str, Any], options: list[str]) -> Namespace:
    try:
        return parser.parse_args(_arguments(config, options))
    except (ArgumentError, TypeError, ValueError) as error:
        raise UserError(_one_line(error)) from error


def _arguments(config: dict[str, Any], options: list[str]) -> list[str]:
    return ["--config", yaml.safe_dump(config, sort_keys=False), *options]


def _substitute(value: Any, places: dict[str, str]) -> Any:
    if isinstance(value, str):
        for place, actual in places.items():
            value = value.replace(place, actual)
        return value
    if isinstance(value, Namespace):
        return Namespace(  # type: ignore[no-untyped-call]
            {key: _substitute(item, places) for key, item in vars(value).items()}
        )
    if isinstance(value, dict):
        return {key: _substitute(item, places) for key, item in value.items()}
    if isinstance(value, list):
        return [_substitute(item, places) for item in value]
    return value


def _one_line(error: Exception) -> str:
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    useful = [line for line in lines if not line.startswith(("usage:", "Given value", "tip:", "For more details"))]
    return " ".join(useful)


def _reorder(trainer: L.Trainer) -> None:
    from lightning.pytorch.trainer.connectors.callback_connector import _CallbackConnector

    trainer.callbacks = _CallbackConnector._reorder_callbacks(trainer.callbacks)  # type: ignore[attr-defined]


def _quiet() -> None:
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*LeafSpec.*", ".*num_workers.*", ".*tensorboardX.*", ".*CSVLogger.*", ".*Checkpoint directory.*",
        ".*weights_only.*", ".*GPU available but not used.*", ".*does not have many workers.*", ".*logging interval.*",
        ".*Experiment logs directory.*",
    ):  # fmt: skip
        warnings.filterwarnings("ignore", message=message)
