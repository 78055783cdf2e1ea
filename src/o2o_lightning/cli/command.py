"""The command line, parsed once: what comes after asks the :class:`Command`, never the words that were typed."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

from o2o_lightning.errors import UserError

PHASES = ("offline", "clone", "reevaluate", "align", "online")
_SHORT = {"-c": "--config", "-h": "--help"}
_FLAGS = ("--print_config", "--help")
_OF_ONE_PHASE = re.compile(rf"({'|'.join(PHASES)})\.(?=model\.|data\.|trainer\.)")
_TYPED_TOKEN = re.compile(rf"(({'|'.join(PHASES)})\.(?=model\.|data\.|trainer\.)|model\.)[\w.]+=")
_HYDRA_TOKEN = re.compile(r"^(~|\+{0,2})[A-Za-z_][\w./@]*(=.*)?$", re.DOTALL)


@dataclass(frozen=True)
class Option:
    """A dotted option: ``--online.model.init_args.threshold.end 0.5`` sets ``model.threshold.end`` of ``online``."""

    phase: str | None  # the one phase that it is for, None for all that know it
    name: str
    value: str | None  # None of a flag
    tokens: tuple[str, ...]  # as it was typed

    @classmethod
    def of(cls, name: str, value: str | None, tokens: list[str]) -> Option:
        """The option that was typed as ``--name value``."""
        own = _OF_ONE_PHASE.match(name)
        within = name[own.end() :] if own else name
        if within == "trainer.callbacks" and value not in (None, "null", "[]"):  # one more, as with Lightning's `+=`
            name, within = f"{name}+", f"{within}+"
            tokens = [f"--{name}={value}"]
        return cls(own[1] if own else None, within.replace(".init_args.", "."), value, tuple(tokens))

    @property
    def typed(self) -> str:
        """The name with the phase that it is for."""
        return self.name if self.phase is None else f"{self.phase}.{self.name}"

    def at(self, name: str) -> list[str]:
        """The words that set ``name`` instead, in the parser of one phase."""
        if self.phase is None and name == self.name:
            return list(self.tokens)
        return [f"--{name}" if self.value is None else f"--{name}={self.value}"]


@dataclass
class Command:
    """A command line, taken apart."""

    phase: str = "all"  # or one of PHASES
    run_dir: str | None = None  # where results go, None for a new folder under runs/
    overrides: list[str] = field(default_factory=list)  # Hydra tokens such as online=o2td3 or steps.env=5000
    options: list[Option] = field(default_factory=list)  # for LightningCLI, with --config and flags
    own: list[Option] = field(default_factory=list)  # --phase and --run_dir, where they were typed

    @property
    def values(self) -> dict[str, str]:
        """What each option of all phases was set to, the last time."""
        return {option.name: option.value for option in self.options if not (option.phase or option.value is None)}

    @property
    def start(self) -> str | None:
        """The checkpoint that was typed to start from."""
        return self.values.get("model.init_from") or None

    @property
    def files(self) -> list[str]:
        """The configuration files."""
        return [option.value or "" for option in self.named("config")]

    @property
    def tokens(self) -> list[str]:
        """The options as they were typed."""
        return [token for option in self.options for token in option.tokens]

    def named(self, name: str) -> list[Option]:
        """The options ``name``, in the order of the line."""
        return [option for option in self.options if option.name == name]

    def overridden(self, key: str) -> bool:
        """Whether a Hydra token sets ``key``."""
        return any(hydra_key(token) == key for token in self.overrides)

    def of_seed(self, seed: int) -> Command:
        """The command of that seed alone: ``$SEED`` in an option is its number."""
        words = [word.replace("$SEED", str(seed)) for word in (*self.without("seeds").overrides, *self.tokens)]
        return split(["--phase", self.phase, *words, "--seed_everything", str(seed)])

    def without(self, name: str) -> Command:
        """The same command, as if the option or the Hydra key ``name`` had not been typed."""
        return replace(
            self,
            overrides=[token for token in self.overrides if hydra_key(token) != name],
            options=[option for option in self.options if option.name != name],
        )


def hydra_key(token: str) -> str:
    """What a Hydra token sets: ``data.utd`` for ``+data.utd=5``."""
    return token.lstrip("+~").partition("=")[0]


def split(argv: list[str]) -> Command:
    """Takes ``argv`` (after the sub-command) apart; never changes it (DDP's children run it again)."""
    command, rest = Command(), list(argv)
    while rest:
        token = rest.pop(0)
        name, joined, value = token.partition("=")
        if token.startswith("-"):
            full, given = _SHORT.get(name, name), value if joined else None
            own = full in ("--phase", "--run_dir")
            tokens = [f"{full}{joined}{value}"]
            if (not joined and full not in _FLAGS) or (own and not value):
                if rest and not rest[0].startswith("--"):
                    given = rest.pop(0)
                    tokens.append(given)
                elif not name.endswith(".help"):
                    raise UserError(f"{name}: a value is missing. Write `{name} VALUE`.")
            option = Option.of(full.removeprefix("--"), given, tokens)
            if own:
                setattr(command, option.name, option.value)
            (command.own if own else command.options).append(option)
        elif _TYPED_TOKEN.match(token):  # an option in Hydra's form
            command.options.append(Option.of(name, value, [f"--{token}"]))
        elif _HYDRA_TOKEN.match(token) and (joined or token.startswith("~")):
            if name == "phase":
                raise UserError(f"{token}: the phase is an option. Write `--{token}`.")
            command.overrides.append(token)
        else:
            raise UserError(
                f"'{token}' is neither an option (--name value) nor a Hydra override (group=option). See `o2o fit -h`."
            )
    if command.phase not in (*PHASES, "all"):
        raise UserError(f"--phase {command.phase}: choose one of {', '.join(PHASES)}, all.")
    return command
