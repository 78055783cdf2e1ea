"""Errors of Hydra and jsonargparse in one line that a user can act on: what, where, and what was probably meant."""

import difflib
import importlib
import re
from collections.abc import Iterable

from o2o_lightning.errors import UserError

_HYDRA_NOISE = ("full_key:", "object_type=", "reference_type=", "Set the environment variable", "See https:")
_NOISE = ("usage:", "Given value", "Subtypes:", "Errors:", "Does not validate", "tip:", "For more details")
_TYPES = {"NoneType": "null", "str": "a text", "int": "a whole number", "float": "a number", "bool": "true or false"}
_DATA = ("OfflineData", "OnlineData", "RolloutData", "TrajectoryData", "EpisodeData")
_CLASSES = {
    "--trainer.logger": "lightning.pytorch.loggers",
    "--trainer.callbacks": "lightning.pytorch.callbacks",
    "--model": "o2o_lightning.phases",
}


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?``, or a full stop."""
    close = difflib.get_close_matches(name, list(dict.fromkeys(known)), 1, 0.6)
    return f"; did you mean '{close[0]}'?" if close else "."


def _guess_or_list(name: str, known: list[str]) -> str:
    guess = did_you_mean(name, known)
    return f". There are {', '.join(known)}." if guess == "." and known else guess


def hydra_message(error: Exception, known: list[str]) -> str:
    """One line for an error of composing; ``known`` are the groups and keys that exist."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(line for line in lines if not line.startswith(_HYDRA_NOISE))
    if option := re.search(r"Could not find '(.+?)/([^/']+)' Available options in '.+?': (.*)", text):
        choices = option[3].partition("Config search path")[0].split()
        return f"{option[1]}={option[2]}: no such option{_guess_or_list(option[2], choices)}"
    if key := re.search(r"Could not override '([^']+)'", text):
        if key[1].startswith(("data.", "trainer.")):
            return f"{key[1]}=…: it has no default to override. Write `--{key[1]} VALUE`."
        return f"{key[1]}=…: no such group or key{did_you_mean(key[1], known)} See `o2o fit -h`."
    if place := re.search(r"hydra.searchpath.*path=(\S+) is not available", text):
        return f"hydra.searchpath: there is no folder {place[1]}. Pass [file:///absolute/path]."
    if missing := re.search(r"Interpolation key '([^']+)' not found", text):
        return f"configuration: '{missing[1]}' is asked for and not there. Check the value of tier=."
    return f"configuration: {text.rstrip('.')}. Check the Hydra override; `o2o fit -h` shows the form."


def parser_message(
    error: Exception,
    options: Iterable[str],
    arguments: dict[str, list[str]],
    files: list[str],
    classes: dict[str, str],
) -> str:
    """One line for an error of jsonargparse.

    ``options`` are the parser's own, ``arguments`` those of the model and of the data, ``files`` were read;
    ``classes`` says how to call some of the classes.
    """
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    keys = re.findall(r'Parser key "([^"]+)"', text)
    owner = re.findall(r"Problem with given class_path '([^']+)'", text)
    where = f"--{'.'.join(keys)}".replace("--model.method", "--model")  # a method's options are the model's
    if name := re.search(r"unrecognized arguments: --(\S+?)(?:[=\s]|$)|Option '([^']+)' is not accepted", text):
        option = name[1] or name[2]
        if owner:
            guess, name_of = _guess_or_list(option, arguments.get(keys[0], [])), owner[-1].rpartition(".")[2]
            return f"{where}.{option}: {classes.get(name_of, name_of)} has no such option{guess}"
        guess = did_you_mean(f"--{option}", [*options, *_other_part(option)])
        place = f"--config {' '.join(files)}: '{option}'" if name[2] else f"--{option}"
        return f"{place}: no such option{guess} `--print_config` lists them."
    if required := re.search(r"the following arguments are required: (.+)", text):
        return f"{where}.{required[1]}: it is missing. Pass it."
    if missing := re.search(r"File does not exist: '(.+?)'", text):
        return f"{where} {missing[1]}: there is no such file. Check the path; it starts from the current directory."
    if syntax := re.search(r"Problems parsing config: (.*)", text, re.DOTALL):
        return f"--config {' '.join(files)}: it is not YAML ({' '.join(syntax[1].split())}). Correct the file."
    if unknown := re.search(r"Expected a dot import path string: (\S+)", text):
        names = importlib.import_module(_CLASSES[where]).__all__ if where in _CLASSES else _DATA
        guess = _guess_or_list(unknown[1], list(names))
        return f"{where} {unknown[1]}: no such class{guess} A full import path, package.module.Class, will do too."
    return _type_message(text, where)


def instantiation_message(error: Exception) -> str:
    """One line for what a class refused: its own words, without jsonargparse's wrapping."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError):
            return str(cause)
        if isinstance(cause, ModuleNotFoundError):
            return f"configuration: {cause}. Install what is missing, or choose another class."
        cause = cause.__cause__ or cause.__context__
    return f"configuration: {str(error).rstrip('.!')}. Check the --trainer options."


def _other_part(option: str) -> list[str]:
    """``--data.x`` for ``dta.x``; the parser does not know what comes after ``--data.``."""
    part, _, rest = option.partition(".")
    close = difflib.get_close_matches(part, ("model", "data", "trainer"), 1)
    return [f"--{close[0]}.{rest}"] if close and close[0] != part else []


def _type_message(text: str, where: str) -> str:
    found = re.findall(r"Expected (?:an? |(?=<class))(.+?)(?:\. Got value: .*)?$", text, re.MULTILINE)
    value = re.search(r"Got value: (.*)", text) or re.search(r"Given value: (.*)", text)
    if found and value:
        # every optional argument may also be null, which nobody means who gets this message
        wanted = [kind for kind in dict.fromkeys(found) if "NoneType" not in kind] or found
        return f"{where} {value[1]}: {' or '.join(_kind(kind) for kind in wanted)} is needed."
    lines = [line.strip(" -") for line in text.splitlines() if line.strip(" -")]
    useful = " ".join(line for line in lines if not line.startswith(_NOISE))
    return re.sub(r"^argument (--\S+): (.*)$", r"\1: \2.", useful)


def _kind(kind: str) -> str:
    if literal := re.search(r"Literal\[(.+)\]", kind):
        return f"one of {literal[1]}".replace("'", "")
    name = kind.removeprefix("<class '").removesuffix("'>")
    return _TYPES.get(name, name)
