"""From the command line to a plain Lightning configuration: Hydra composes defaults, LightningCLI overrides them."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from o2o_lightning.cli.messages import hydra_message
from o2o_lightning.errors import UserError

PHASES = ("offline", "clone", "reevaluate", "align", "online")
MISSING = "???"
ONLINE_DATA = ("o2o_lightning.data.online.OnlineData", "o2o_lightning.data.rollout.RolloutData")
# What a file's name says of the domain, for the tables of hyper-parameters.
DOMAINS: dict[str, tuple[str, ...]] = {
    **{name: (name,) for name in ("halfcheetah", "hopper", "walker2d", "antmaze", "maze2d")},
    "adroit": ("pen-", "hammer-", "door-", "relocate-"),
}
_FLAGS = ("--print_config", "-h", "--help")
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

    @property
    def start(self) -> str | None:
        """The checkpoint that was typed to start from."""
        return self.option("--model.init_from") or self.option("--model.init_args.init_from")

    def overridden(self, key: str) -> bool:
        """Whether a Hydra token sets ``key``."""
        return any(token.lstrip("+").startswith(key + "=") for token in self.overrides)


def split(argv: list[str]) -> Command:
    """Takes ``argv`` (after the sub-command) apart; never changes it (DDP's children run it again)."""
    command, i = Command(), 0
    while i < len(argv):
        token = argv[i]
        name, _, value = token.partition("=")
        if name in ("--phase", "--run_dir"):
            if not value:
                i += 1
                if i >= len(argv) or argv[i].startswith("--"):
                    raise UserError(f"{name}: a value is missing. Write `{name} VALUE`.")
                value = argv[i]
            setattr(command, name[2:], value)
        elif token.startswith("-"):
            command.options.append("--config" + token[2:] if name == "-c" else token)
            if "=" not in token and token not in _FLAGS:
                follows = i + 1 < len(argv) and not argv[i + 1].startswith("--")
                if follows:
                    i += 1
                    command.options.append(argv[i])
                elif not token.endswith(".help"):
                    raise UserError(f"{token}: a value is missing. Write `{token} VALUE`.")
        elif _HYDRA_TOKEN.match(token) and ("=" in token or token.startswith("~")):
            if token.startswith("phase="):
                raise UserError(f"{token}: the phase is an option. Write `--{token}`.")
            command.overrides.append(token)
        else:
            raise UserError(
                f"'{token}' is neither an option (--name value) nor a Hydra override (group=option). See `o2o fit -h`."
            )
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
    return copy.deepcopy(_compose(phase, (*infer_dataset(command)[0], *command.overrides)))


@cache
def _compose(phase: str, tokens: tuple[str, ...]) -> dict[str, Any]:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    GlobalHydra.instance().clear()

    def keys() -> list[str]:
        return _keys(OmegaConf.to_container(hydra_compose("config", [f"phase={phase}"])))

    with initialize_config_dir(config_dir=str(config_dir()), version_base="1.3"), warnings.catch_warnings():
        if any(token.startswith("+") for token in tokens):
            _refuse_new_roots(tokens, keys())
        warnings.filterwarnings("error", message=".*path=.* is not available")
        try:
            resolved = OmegaConf.to_container(hydra_compose("config", [*tokens, f"phase={phase}"]), resolve=True)
        except (HydraException, OmegaConfBaseException, UserWarning) as error:
            raise UserError(hydra_message(error, [*groups(), *keys()])) from error
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}


def groups() -> dict[str, list[str]]:
    """The configuration groups, and the options of each."""
    folders = sorted(folder for folder in config_dir().iterdir() if folder.is_dir())
    return {folder.name: sorted(file.stem for file in folder.glob("*.yaml")) for folder in folders}


def infer_dataset(command: Command) -> tuple[list[str], str | None]:
    """``--data.dataset`` alone also chooses the hyper-parameters' row: by D4RL name, else by what the name says.

    Returns the Hydra tokens, and a line for the user where they were guessed.
    """
    spec = command.option("--data.dataset") or command.option("--data.init_args.dataset") or "null"
    if spec == "null" or command.overridden("dataset"):
        return [], None
    name = re.sub(r"^d4rl:|#.*$", "", spec)
    rows = groups()["dataset"]
    if name in rows:
        return [f"dataset={name}"], None
    if spec == "embedded:hopper-medium":
        return ["dataset=embedded"], None
    stem = re.sub(r"\.(hdf5|h5|hdf)$", "", name.replace("_", "-").lower()).rpartition("/")[2]
    for row in (stem, f"{stem}-v2"):
        if row in rows:
            return [f"dataset={row}"], _guess(f"the dataset's row '{row}'", command, "dataset=file tier=medium")
    domain = [f"domain={known}" for known, prefixes in DOMAINS.items() if stem.startswith(prefixes)]
    tier = "expert" if "expert" in stem else "medium"
    other = "tier=medium" if tier == "expert" else "tier=expert"
    return ["dataset=file", *domain, f"tier={tier}"], _guess(f"row '{tier}'", command, other)


def _guess(what: str, command: Command, other: str) -> str | None:
    if command.overridden("tier"):
        return None
    return f"hyper-parameters: {what}, guessed from the dataset's name; another with {other}"


def lightning_config(composed: dict[str, Any]) -> dict[str, Any]:
    """What LightningCLI reads: seed, trainer, model and data, each class by path.

    One composition serves all phases: a data option that this phase's class lacks is dropped when an online phase's
    class has it, and is left to be refused otherwise.
    """
    from o2o_lightning.cli.lightning import accepts

    path = composed["data_class"]
    data = {
        key: value
        for key, value in composed["data"].items()
        if value != MISSING and (accepts(path, key) or not any(accepts(online, key) for online in ONLINE_DATA))
    }
    return {
        "seed_everything": composed["seed_everything"],
        "trainer": composed["trainer"],
        "model": composed["model"],
        "data": {"class_path": path, "init_args": data},
    }


def _keys(config: Any, prefix: str = "") -> list[str]:
    """Every dotted key of nested mappings."""
    if not isinstance(config, Mapping):
        return []
    found = []
    for key, value in config.items():
        found += [f"{prefix}{key}", *_keys(value, f"{prefix}{key}.")]
    return found


def _refuse_new_roots(tokens: tuple[str, ...], known: list[str]) -> None:
    # Hydra would accept `+offlin=td3_bc` as a new key that nothing reads
    for token in tokens:
        root = re.split(r"[.=@/]", token.lstrip("+"), maxsplit=1)[0]
        if token.startswith("+") and root not in {*known, *groups()}:
            raise UserError(f"{token}: nothing reads '{root}'. Groups are {', '.join(groups())}; see `o2o fit -h`.")
