"""``o2o --print_completion SHELL``: a script that completes commands, groups, options and files."""

import argparse
from collections.abc import Sequence

from o2o_lightning.cli import data, policy
from o2o_lightning.cli.command import PHASES, Command
from o2o_lightning.cli.compose import compose, groups, lightning_config
from o2o_lightning.cli.models import known
from o2o_lightning.errors import UserError

SHELLS = {"bash": "", "zsh": "autoload -U +X bashcompinit && bashcompinit\n"}
SCRIPT = """\
{shell}_o2o() {{
  local line="${{COMP_LINE:0:COMP_POINT}}" choices=""
  local word="${{line##* }}"
  case "${{COMP_WORDS[1]}}" in
    fit|sweep) choices="{words}" ;;
    policy) choices="{policy}" ;;
    data) choices="{data}" ;;
    hub) choices="push pull" ;;
  esac
  ((COMP_CWORD == 1)) && choices="{commands}"
  local prefix="${{word%"${{COMP_WORDS[COMP_CWORD]}}"}}"  # what bash has split off at an equals sign
  [[ "${{COMP_WORDS[COMP_CWORD]}}" == "=" ]] && prefix="$word"
  COMPREPLY=()
  local choice
  while read -r choice; do COMPREPLY+=("${{choice#"$prefix"}}"); done < <(compgen -W "$choices" -- "$word")
}}
complete -o default -o nospace -F _o2o o2o
"""


def script(argv: Sequence[str], commands: Sequence[str]) -> str:
    """The script of the shell that ``argv`` names.

    Raises:
        UserError: another shell than those that there are.
    """
    shell = argv[0] if argv else ""
    if shell not in SHELLS:
        raise UserError(f"--print_completion {shell}: choose one of {', '.join(SHELLS)}.")
    parts = {"policy": _commands(policy.parser()), "data": _commands(data.parser())}
    return SCRIPT.format(shell=SHELLS[shell], commands=" ".join(commands), words=" ".join(_words()), **parts)


def _commands(parser: argparse.ArgumentParser) -> str:
    """The sub-commands that ``parser`` knows."""
    return " ".join(next(action.choices for action in parser._actions if isinstance(action.choices, dict)))


def _words() -> list[str]:
    """What may come after ``fit`` and ``sweep``: each group with its options, and every option of every phase."""
    found = [f"{group}={option}" for group, options in groups().items() if group != "phase" for option in options]
    found += [f"--{name}" for name in ("phase", "run_dir", "config", "print_config", "seed_everything")]
    for phase in PHASES:
        composed = compose(phase, Command())
        if "class_path" in composed["model"]:
            config = lightning_config(phase, composed)
            names = {f"--{part}.{name}" for part in ("model", "data") for name in known(part, config)}
            found += sorted(names - {"--model.method", *found})
    return found
