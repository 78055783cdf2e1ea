"""Hydra composes the defaults of a phase, from ``configs/`` and the command; LightningCLI overrides them."""

import copy
import re
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from o2o_lightning.cli.command import Command, hydra_key
from o2o_lightning.cli.messages import hydra_message
from o2o_lightning.errors import UserError

MISSING = "???"
ONLINE_DATA = tuple(
    f"o2o_lightning.data.{name}" for name in ("online.OnlineData", "rollout.RolloutData", "episodes.EpisodeData")
)
# What a file's name says of the domain, for the tables of hyper-parameters.
DOMAINS: dict[str, tuple[str, ...]] = {
    **{name: (name,) for name in ("halfcheetah", "hopper", "walker2d", "antmaze", "maze2d")},
    "adroit": ("pen-", "hammer-", "door-", "relocate-"),
}


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
    tokens = [plain for token in command.overrides for plain in _own_rule(token)]
    return copy.deepcopy(_compose(phase, (*infer_dataset(command)[0], *tokens)))


def _own_rule(token: str) -> list[str]:
    """``online=my_package.my_rule:MyRule`` as the recipe of a user's own rule; any other token as it is."""
    group, _, name = token.partition("=")
    if group not in ("offline", "online") or ":" not in name:
        return [token]
    from o2o_lightning.cli.models import rule_of

    rule = rule_of(name)
    tokens = [f"{group}=_own", f"{group}.class_path={name.replace(':', '.')}"]
    if group == "online":
        tokens += [f"family={rule.policy_family({})}"] if rule.policy_family({}) else []
        tokens += [f"online_data={ONLINE_DATA[1]}"] if rule.on_policy else []
    return tokens


@cache
def _compose(phase: str, tokens: tuple[str, ...]) -> dict[str, Any]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(config_dir()), version_base="1.3"), warnings.catch_warnings():
        for token in tokens:
            root = re.split(r"[.@/]", hydra_key(token), maxsplit=1)[0]
            # Hydra would accept `+offlin=td3_bc` as a new key that nothing reads
            if token.startswith("+") and root not in _known(phase):
                raise UserError(f"{token}: nothing reads '{root}'. Groups are {', '.join(groups())}; see `o2o fit -h`.")
        warnings.filterwarnings("error", message=".*path=.* is not available")
        try:
            resolved = OmegaConf.to_container(hydra_compose("config", [*tokens, f"phase={phase}"]), resolve=True)
        except (HydraException, OmegaConfBaseException, UserWarning, ValueError) as error:
            raise UserError(hydra_message(error, _known(phase))) from error
    assert isinstance(resolved, dict)
    online = [value for key, _, value in (token.partition("=") for token in tokens) if key == "online"]
    if (owner := resolved["preset_of"]) and online and online[-1] != owner:
        raise UserError(f"online={online[-1]}: the preset is of online={owner}. Leave one of the two out.")
    for part in ("model", "data", "trainer"):
        if not isinstance(resolved[part], dict) or (part == "model" and not {"class_path", "note"} & {*resolved[part]}):
            raise UserError(f"{part}: {resolved[part]} cannot be built. Write options as --{part}.NAME VALUE.")
    return {str(key): value for key, value in resolved.items()}


@cache
def _known(phase: str) -> list[str]:
    """Every group, and every dotted key of the defaults; while Hydra is initialised."""
    return [*groups(), *_keys(OmegaConf.to_container(hydra_compose("config", [f"phase={phase}"])))]


def _keys(config: Any, prefix: str = "") -> list[str]:
    items = config.items() if isinstance(config, Mapping) else ()
    return [name for key, value in items for name in (f"{prefix}{key}", *_keys(value, f"{prefix}{key}."))]


def groups() -> dict[str, list[str]]:
    """The configuration groups, and the options of each."""
    folders = sorted(folder for folder in config_dir().iterdir() if folder.is_dir())
    return {folder.name: sorted(file.stem for file in folder.glob("[!_]*.yaml")) for folder in folders}


def infer_dataset(command: Command) -> tuple[list[str], str | None]:
    """``--data.dataset`` alone also chooses the hyper-parameters' row: by D4RL name, else by what the name says.

    Returns the Hydra tokens, and a line for the user where they were guessed.
    """
    spec = command.values.get("data.dataset") or "null"
    if spec == "null" or command.overridden("dataset"):
        return [], None
    name = re.sub(r"^d4rl:|#.*$", "", spec)
    rows = groups()["dataset"]
    if name in rows:
        return [f"dataset={name}"], None
    if spec == "embedded:hopper-medium":
        return ["dataset=embedded"], None
    stem = re.sub(r"\.(hdf5|h5|hdf)$", "", name.replace("_", "-").lower()).rpartition("/")[2]
    row = next((row for row in (stem, f"{stem}-v2") if row in rows), None)
    if row is not None:
        tokens, what, other = [f"dataset={row}"], f"the dataset's row '{row}'", "dataset=file tier=medium"
    else:
        tier, another = ("expert", "medium") if "expert" in stem else ("medium", "expert")
        domain = [f"domain={known}" for known, prefixes in DOMAINS.items() if stem.startswith(prefixes)]
        tokens, what, other = ["dataset=file", *domain, f"tier={tier}"], f"row '{tier}'", f"tier={another}"
    note = f"hyper-parameters: {what}, guessed from the dataset's name; another with {other}"
    return tokens, None if command.overridden("tier") else note


def lightning_config(phase: str, composed: dict[str, Any]) -> dict[str, Any]:
    """What LightningCLI reads of a phase: seed, trainer, model and data, each class by path.

    One composition serves all phases: a data option that this phase's class lacks is dropped when an online phase's
    class has it, and is left to be refused otherwise.
    """
    from o2o_lightning.cli.models import accepts, held

    path = composed["data_class"]
    data = {
        key: value
        for key, value in composed["data"].items()
        if value != MISSING and (accepts(path, key) or not any(accepts(online, key) for online in ONLINE_DATA))
    }
    kept = {part: composed[part] for part in ("seed_everything", "trainer", "checkpoint")}
    return {**kept, "model": held(phase, composed["model"]), "data": {"class_path": path, "init_args": data}}
