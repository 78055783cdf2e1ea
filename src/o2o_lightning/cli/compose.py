"""From the command line to a plain Lightning configuration: Hydra composes defaults, LightningCLI overrides them."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from o2o_lightning.errors import UserError

# What a file's or D4RL name says of the domain, for the tables of hyper-parameters.
DOMAINS: dict[str, tuple[str, ...]] = {
    **{name: (name,) for name in ("halfcheetah", "hopper", "walker2d", "antmaze", "maze2d")},
    "adroit": ("pen-", "hammer-", "door-", "relocate-"),
}
PHASES = ("offline", "reevaluate", "align", "online")
# Keys of `data` that some DataModules take: one composition serves all phases.
ONE_KIND = ("mix", "warmup_steps", "utd", "env_steps", "capacity", "rollout", "epochs", "num_envs")
_HYDRA_TOKEN = re.compile(r"^(~|\+{0,2})[A-Za-z_][\w./@]*(=.*)?$", re.DOTALL)


@dataclass
class Command:
    """A command line, taken apart.

    Attributes:
        phase: one of :data:`PHASES`, or ``all``.
        run_dir: where results go, None for a new folder under ``runs/``.
        overrides: Hydra tokens such as ``online=o2td3`` or ``steps.env=5000``.
        options: dotted Lightning options and ``--config``, for jsonargparse.
    """

    phase: str = "all"
    run_dir: str | None = None
    overrides: list[str] = field(default_factory=list)
    options: list[str] = field(default_factory=list)

    def option(self, name: str) -> str | None:
        """The last value given for the dotted option ``name``, or None."""
        value = None
        for i, token in enumerate(self.options):
            if token == name and i + 1 < len(self.options):
                value = self.options[i + 1]
            elif token.startswith(name + "="):
                value = token.partition("=")[2]
        return value


def split(argv: list[str]) -> Command:
    """Takes ``argv`` (after the sub-command) apart; never changes it (DDP's children run it again)."""
    command, i = Command(), 0
    while i < len(argv):
        token = argv[i]
        name, _, value = token.partition("=")
        if name in ("--phase", "--run_dir"):
            if not value:
                i += 1
                if i >= len(argv):
                    raise UserError(f"{name}: a value is missing.")
                value = argv[i]
            setattr(command, name[2:], value)
        elif token.startswith("-"):
            command.options.append(token)
            # an option's value follows it; `--flag` alone or `--option=value` has none
            alone = "=" in token or token == "--print_config" or i + 1 == len(argv) or argv[i + 1].startswith("--")
            if not alone:
                i += 1
                command.options.append(argv[i])
        elif _HYDRA_TOKEN.match(token) and ("=" in token or token.startswith("~")):
            command.overrides.append(token)
        else:
            raise UserError(f"'{token}' is neither an option (--name value) nor a Hydra override (group=option).")
        i += 1
    if command.phase not in (*PHASES, "all"):
        raise UserError(f"--phase {command.phase}: choose one of {', '.join(PHASES)}, all.")
    return command


def config_dir() -> Path:
    """The packaged ``configs/``, or the repository's in an editable install."""
    package = Path(__file__).resolve().parents[1]
    packaged = package / "configs"
    return packaged if packaged.is_dir() else package.parents[1] / "configs"


def compose(phase: str, command: Command) -> dict[str, Any]:
    """The composed defaults of one phase, interpolations resolved, as plain containers.

    Raises:
        UserError: an unknown group, option or key, with the choices that exist.
    """
    overrides = (*_infer_dataset(command), *command.overrides, f"phase={phase}")
    return copy.deepcopy(_composed(overrides))


@cache
def _composed(overrides: tuple[str, ...]) -> dict[str, Any]:
    # a fit asks for the same composition several times, and Hydra takes a fifth of a second for each
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir=str(config_dir()), version_base="1.3"):
            composed = hydra_compose("config", list(overrides))
            resolved = OmegaConf.to_container(composed, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(f"configuration: {_first_lines(error)}") from error
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}


def lightning_config(composed: dict[str, Any]) -> dict[str, Any]:
    """What LightningCLI reads: seed, trainer, model and data, each class by path."""
    from o2o_lightning.cli.lightning import accepts

    data = {
        key: value
        for key, value in composed["data"].items()
        if value != "???" and (key not in ONE_KIND or accepts(composed["data_class"], key))
    }
    return {
        "seed_everything": composed["seed_everything"],
        "trainer": composed["trainer"],
        "model": composed["model"],
        "data": {"class_path": composed["data_class"], "init_args": data},
    }


def _infer_dataset(command: Command) -> list[str]:
    """``--data.dataset`` alone also chooses the hyper-parameters' row: by D4RL name, else by the file's name."""
    spec = command.option("--data.dataset")
    if spec is None or any(token.startswith("dataset=") for token in command.overrides):
        return []
    name = re.sub(r"^d4rl:|#.*$", "", spec)
    if (config_dir() / "dataset" / f"{name}.yaml").is_file():
        return [f"dataset={name}"]
    if spec == "embedded:hopper-medium":
        return ["dataset=embedded"]
    stem = Path(name).name.lower()
    domain = [f"domain={known}" for known, prefixes in DOMAINS.items() if stem.startswith(prefixes)]
    return ["dataset=file", *domain, *(["tier=expert"] if "expert" in stem else [])]


def _first_lines(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    noise = ("full_key:", "object_type=", "Set the environment variable", "reference_type=")
    return " ".join(line for line in lines if not line.startswith(noise))
