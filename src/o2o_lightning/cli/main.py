"""Entry point of ``o2o``: chooses the sub-command and turns bad input into one line and exit code 2."""

import difflib
import importlib
import os
import sys
from importlib.metadata import version

from o2o_lightning.cli.streams import guarded
from o2o_lightning.errors import Failure, Lost, UserError
from o2o_lightning.launch import first_process

USAGE = """\
o2o: fine-tune any offline policy online, without the collapse

  o2o fit      --phase {offline,reevaluate,align,online,all}   train (see `o2o fit -h`)
  o2o test     --ckpt_path CKPT     the paper's evaluation, with the normalised score
  o2o validate --ckpt_path CKPT     one quick evaluation
  o2o predict  --ckpt_path CKPT     the policy's actions on a dataset, to a file
  o2o sweep    key=a,b,…            `o2o fit` for every combination of seeds, datasets, methods
  o2o resume   RUN_DIR              goes on after a crash, exactly where it stopped
  o2o report   RUN_DIR…             curves, intervals over seeds, tables, a page and pictures of finished runs
  o2o diagnose CKPT | RUN_DIR       how mismatched policy, critic and data are, and which phases are needed
  o2o reproduce [table2 | figure5]  the runs of a table or figure of the paper, and the table itself
  o2o play     CKPT                 watch the policy, or record it: --record out.gif
  o2o policy   import | clone | export | inspect | list     policies of other libraries in, ours out
  o2o hub      push | pull          a run's policy with its card, to a model hub or a folder, and back
  o2o data     info | check | list | cut | make
  o2o demo                          the whole pipeline on the embedded Hopper data, next to naive fine-tuning

`o2o COMMAND -h` tells more. Results go to --run_dir; nothing is ever written over.
`eval "$(o2o --print_completion bash)"` lets the shell (or zsh) complete commands, groups and options.
"""
COMMANDS = (
    "fit", "sweep", "resume", "test", "validate", "predict", "report", "diagnose", "reproduce", "play", "data",
    "policy", "hub", "demo",
)  # fmt: skip
EVALUATIONS = ("test", "validate", "predict")  # one module, which is told which of them


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    with guarded():
        return _main(sys.argv[1:] if argv is None else argv)


def _main(argv: list[str]) -> int:
    try:
        code = _run(argv)
        sys.stdout.flush()  # what a full disk refuses is said, and not left to the interpreter's exit
        return code
    except UserError as error:
        if os.environ.get("O2O_TRACEBACK"):
            raise
        if _speaks(error):
            print(f"o2o: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:  # a full or read-only disk, a lost mount
        if os.environ.get("O2O_TRACEBACK") or not error.filename:
            raise
        print(f"o2o: {error.filename}: {error.strerror}. O2O_TRACEBACK=1 shows where.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("o2o: interrupted.", file=sys.stderr)
        return 130
    except SystemExit as exit:  # argparse and jsonargparse end a process that may be a test's
        return exit.code if isinstance(exit.code, int) else int(exit.code is not None)


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    name, rest = argv[0], argv[1:]
    if name == "--version":
        print(version("o2o-lightning"))
        return 0
    if name == "--print_completion":
        from o2o_lightning.cli.completion import script

        print(script(rest, COMMANDS), end="")
        return 0
    if sys.platform == "win32":  # no resource, fork or signal masks
        raise UserError("Windows: it has not what o2o asks of the system. Install it in WSL2, and run it there.")
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, 1)
        choice = f"Did you mean '{close[0]}'?" if close else f"Choose one of {', '.join(COMMANDS)}."
        raise UserError(f"unknown command '{name}'. {choice} `o2o -h` lists them.")
    module = importlib.import_module(f"o2o_lightning.cli.{'validate' if name in EVALUATIONS else name}")
    return int(module.main(name, rest) if name in EVALUATIONS else module.main(rest))


def _speaks(error: UserError) -> bool:
    """Whether this process says so: with several, all find the same bad input, and one may meet its own misfortune."""
    return first_process() or (isinstance(error, Failure) and not isinstance(error, Lost))


if __name__ == "__main__":
    sys.exit(main())
