"""LightningCLI over a composed configuration: typed, overridable, printable, and quiet about what it is made of."""

import logging
import os
import re
import signal
import subprocess
import traceback
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, cast

import lightning as L
import yaml
from jsonargparse import ArgumentError, Namespace, set_parsing_settings
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.profilers import AdvancedProfiler, SimpleProfiler
from torch.multiprocessing.spawn import ProcessRaisedException

from o2o_lightning.callbacks.checkpoint import PhaseCheckpoint
from o2o_lightning.callbacks.progress import PhaseProgress
from o2o_lightning.callbacks.run_directory import RunDirectory
from o2o_lightning.cli.messages import instantiation_message, parser_message
from o2o_lightning.cli.models import held, known, said
from o2o_lightning.data.module import OfflineData
from o2o_lightning.errors import Failure, Interrupted, Lost, UserError, reason
from o2o_lightning.launch import note_once
from o2o_lightning.limits import check_text, read_yaml
from o2o_lightning.methods.method import Method
from o2o_lightning.phases.base import Phase
from o2o_lightning.ranks import lost

# Lightning calls what jsonargparse has deprecated
os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
set_parsing_settings(subclasses_enabled=[Method])  # a dataclass that is more than its fields
PARTS = ("model", "data")
PROFILERS = {"simple": SimpleProfiler, "advanced": AdvancedProfiler}
FORMER_LOGGER = ("o2o_lightning.report.metrics.", "o2o_lightning.callbacks.metrics.")  # as version 0.1 wrote it
BAD_INPUT = (ArgumentError, MisconfigurationException, ModuleNotFoundError, TypeError, ValueError)
SMALLER = "Lower --data.batch_size, --data.capacity or --model.hidden, or pass --data.memmap true."
LOST = "another process of this run has ended; its own line says why. `o2o resume RUN_DIR` goes on from the checkpoint."


@dataclass
class Built:
    """One phase, ready to run."""

    trainer: L.Trainer
    model: Phase
    datamodule: OfflineData
    seed: int | bool = False
    after: float | None = None  # seconds of the phases that follow, where somebody knows
    forecast: str | None = None  # what there is to say about the whole run, once it is known to begin

    def fit(self, checkpoint: str | Path | None = None) -> None:
        """Runs the phase, or goes on with it from ``checkpoint``.

        Ctrl-C before training ends it as :class:`KeyboardInterrupt`, a Trainer option it can't have as bad input.
        """
        if self.seed is not False:
            L.seed_everything(self.seed, workers=True, verbose=False)
        try:
            self._fit(checkpoint)
        except BaseException:
            end_processes([*_started, *self._processes()])
            raise
        _started.extend(self._processes())

    def _processes(self) -> list[Any]:
        return list(getattr(self.trainer.strategy.launcher, "procs", ()))

    def _fit(self, checkpoint: str | Path | None) -> None:
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, PhaseProgress):
                callback.after, callback.forecast = self.after, self.forecast
        try:
            self.trainer.fit(self.model, datamodule=self.datamodule, ckpt_path=checkpoint, weights_only=True)
        except MisconfigurationException as error:
            raise UserError(f"--trainer: {error}") from error
        except ProcessRaisedException as error:
            raise from_another_process(error) from error
        except UserError:
            raise
        except Exception as error:
            if self.trainer.world_size > 1 and lost(error):
                raise Lost(LOST) from error
            if (fault := self._callbacks_fault(error)) is not None:
                raise fault from error
            if isinstance(error, MemoryError) or "allocate" in str(error):  # torch's allocators have no type of theirs
                raise Failure(f"phase {self.model.phase}: out of memory: {reason(error)}. {SMALLER}") from error
            raise
        except SystemExit:
            if self.trainer.interrupted:
                raise KeyboardInterrupt from None
            raise

    def _callbacks_fault(self, error: Exception) -> UserError | None:
        """What is to be said where a callback of another package has raised; None where the fault is elsewhere."""
        for frame, _ in traceback.walk_tb(error.__traceback__):
            found = frame.f_locals.get("self")
            if isinstance(found, L.Callback) and not type(found).__module__.startswith("o2o_lightning."):
                every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
                known = (
                    ", ".join(sorted(self.trainer.callback_metrics)) or f"nothing before its first row, after {every}"
                )
                return UserError(
                    f"--trainer.callbacks {type(found).__name__}: it raised {type(error).__name__}: {error}. Correct "
                    f"or leave it out; it can monitor {known}."
                )
        return None


class PhaseCLI(LightningCLI):
    """Parses and checks; instantiating waits for :meth:`build`, and running for the caller: both may be much later."""

    def __init__(self, config: dict[str, Any], options: Iterable[str] = (), files: Iterable[str] = ()) -> None:
        quiet()
        self.files, self.composed = list(files), config
        self.own_callbacks: list[L.Callback] = []
        self.folder = Path()
        laid_over = [_dumped(_apart(config)), *(self._read(file) for file in self.files)]
        super().__init__(
            model_class=Phase,
            datamodule_class=OfflineData,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None,
            auto_configure_optimizers=False,
            run=False,
            parser_kwargs={"allow_abbrev": False, "exit_on_error": False, "prog": "o2o fit"},
            # later arguments win: what is typed beats the user's files, and these beat what Hydra composed
            args=[*(f"--config={file}" for file in laid_over), *options],
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(PhaseCheckpoint, "checkpoint")  # of every phase, beside --trainer.callbacks

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        # LightningCLI warns when arguments are given both here and in sys.argv; here they always are
        try:
            self.config = parser.parse_args(args)
        except BAD_INPUT as error:
            options, names = parser._option_string_actions, {part: known(part, self.composed) for part in PARTS}
            raise UserError(parser_message(error, options, names, self.files, said(self.composed))) from error
        seed = self.config["seed_everything"]
        if seed is None or (not isinstance(seed, bool) and not 0 <= seed < 2**32):
            raise UserError(f"--seed_everything {'null' if seed is None else seed}: it must be from 0 to {2**32 - 1}.")

    def _read(self, file: str) -> str:
        """A file with its options of the model sorted into the phase's and the method's; itself where it has none."""
        check_text(Path(file), f"--config {file}")
        try:
            content = _sections(read_yaml(Path(file).read_text().replace(*FORMER_LOGGER), f"--config {file}"), file)
            if "model" in content:
                composed = self.composed["model"]
                content["model"] = held(resolve_name(composed["class_path"]).phase, content["model"], composed)
            content = _apart(content)
        except UnicodeDecodeError as error:
            raise UserError(f"--config {file}: it is no text in UTF-8.") from error
        except (OSError, ValueError, yaml.YAMLError, TypeError, KeyError, AttributeError, ImportError):
            return file  # LightningCLI says what is wrong with it
        return _dumped(content)

    def instantiate_classes(self) -> None:
        """Nothing yet."""

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[L.Callback]) -> L.Trainer:
        theirs = config["callbacks"] if isinstance(config["callbacks"], list) else [config["callbacks"]]
        own = [*self.own_callbacks, *callbacks]
        if isinstance(name := config["profiler"], str) and name in PROFILERS:  # its report is too long for a terminal
            config["profiler"] = PROFILERS[name](str(self.folder), "profile")
            note_once(f"{self.folder.name}: its profile will be in {self.folder}/fit-profile.txt")
        if config["enable_progress_bar"] is not False and not any(isinstance(item, ProgressBar) for item in theirs):
            own.append(PhaseProgress())
        return super()._instantiate_trainer(config, own)

    def written(self) -> str:
        """The whole typed configuration as YAML, as ``--config`` takes it back."""
        return str(self.parser.dump(self.config, skip_unset=False))

    def build(self, run_dir: Path, phase: str, command: dict[str, Any] | None = None) -> Built:
        """Seeds, and instantiates trainer, phase and data; ``command`` is what the run's plan remembers."""
        written = self.written()
        self.config = cast(Namespace, _substitute(self.config, str(run_dir), phase))
        self.own_callbacks, self.folder = [RunDirectory(run_dir, written, command)], run_dir / phase
        if Path(str(self.config["checkpoint.dirpath"])) != self.folder / "checkpoints":
            raise UserError(
                f"--checkpoint.dirpath {self.config['checkpoint.dirpath']}: they go to RUN_DIR/PHASE/checkpoints, "
                "where all commands look for them. Leave it out, and pass --run_dir."
            )
        if str(self.config["trainer.strategy"]).startswith("ddp_spawn"):
            raise UserError("--trainer.strategy ddp_spawn: data and environments can't be sent to a process. Pass ddp.")
        try:
            super().instantiate_classes()
        except BAD_INPUT as error:
            raise UserError(instantiation_message(error)) from error
        model = self.model
        if not isinstance(model, Phase) or model.phase != phase:
            belongs = getattr(model, "phase", "?")
            raise UserError(f"--model: {type(model).__name__} is not of phase '{phase}'. Pass --phase {belongs}.")
        model.config = yaml.safe_load(written)
        return Built(self.trainer, model, cast(OfflineData, self.datamodule), self.config["seed_everything"])


_started: list[Any] = []  # the processes of the other devices, which Lightning starts with the first phase


def end_processes(processes: list[Any]) -> None:
    """Ends the other processes of a run that has failed here; on a GPU they would wait for this one for minutes."""
    for process in processes:
        if isinstance(process, subprocess.Popen):
            try:
                process.wait(5)  # time to say what they have failed of
            except subprocess.TimeoutExpired:
                process.kill()


def from_another_process(error: Exception) -> Exception:
    """What a process that ``ddp_fork`` has forked died of, of which only the traceback's text is left."""
    found = re.findall(r"^o2o_lightning\.[\w.]+\.(\w+): (.*)$", str(error), re.MULTILINE)
    if not found:
        return Lost(LOST) if lost(error) else error
    kind, message = found[-1]
    if number := re.match(r"(SIG\w+): ", message):
        return Interrupted(message, signal.Signals[number[1]])
    return (Failure if kind in ("Failure", "NonFinite") else UserError)(message)


def quiet() -> None:
    """Silences what Lightning and its parts say of themselves; warnings that concern the user still come."""
    for name in ("pytorch", "pytorch.utilities.rank_zero", "fabric.utilities.seed", "fabric.utilities.distributed"):
        logging.getLogger(f"lightning.{name}").setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.profilers").setLevel(logging.INFO)  # what a profiler says was asked for
    for message in (
        ".*LeafSpec.*", ".*num_workers.*", ".*tensorboardX.*", ".*CSVLogger.*", ".*Checkpoint directory.*",
        ".*weights_only.*", ".*GPU available but not used.*", ".*does not have many workers.*", ".*logging interval.*",
        ".*Experiment logs directory.*", ".*You're resuming from a checkpoint that ended.*",
        ".*transfer_batch_to_device.*", ".*No seed found.*", ".*implemented the batching rule.*",
        ".*ModelCheckpoint with manual optimization.*",
    ):  # fmt: skip
        warnings.filterwarnings("ignore", message=message)


def _apart(config: dict[str, Any]) -> dict[str, Any]:
    """``config`` with what version 0.1 wrote among the callbacks of others where it is now: under ``checkpoint``."""
    trainer = config.get("trainer")
    if not isinstance(trainer, dict) or not isinstance(given := trainer.get("callbacks"), list):
        return config
    paths = {f"{kind.__module__}.{kind.__name__}": kind for kind in (PhaseProgress, PhaseCheckpoint)}
    own = {paths.get(item["class_path"]): item for item in given if isinstance(item, dict) and "class_path" in item}
    if not {PhaseProgress, PhaseCheckpoint} & {*own}:
        return config
    theirs = [item for item in given if item not in (own.get(PhaseProgress), own.get(PhaseCheckpoint))]
    saved = own[PhaseCheckpoint].get("init_args") if PhaseCheckpoint in own else None
    settings = {} if saved is None else {"checkpoint": saved}
    return {**config, "trainer": {**trainer, "callbacks": theirs}, **settings}


def _sections(content: Any, file: str) -> dict[str, Any]:
    """What a file says, without the sections of which it says nothing."""
    if not isinstance(content, dict):
        raise UserError(f"--config {file}: names and values are needed, such as `trainer: {{max_steps: 1000}}`.")
    for name in ("model", "data", "trainer", "checkpoint"):
        if not isinstance(content.get(name) or {}, dict):
            raise UserError(f"--config {file}: '{name}' needs names and values below it, not {content[name]!r}.")
    return {name: value for name, value in content.items() if value is not None or name == "seed_everything"}


def _dumped(config: dict[str, Any]) -> str:
    return str(yaml.safe_dump(config, sort_keys=False))


def _substitute(value: Any, run_dir: str, phase: str) -> Any:
    if isinstance(value, str):
        return value.replace("$RUN_DIR", run_dir).replace("$PHASE", phase)
    if isinstance(value, list):
        return [_substitute(item, run_dir, phase) for item in value]
    if isinstance(value, dict | Namespace):
        items = value if isinstance(value, dict) else vars(value)
        return type(value)({key: _substitute(item, run_dir, phase) for key, item in items.items()})
    return value
