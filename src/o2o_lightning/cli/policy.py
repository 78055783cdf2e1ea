"""``o2o policy``: bring a policy of another library, turn it into another family, take one away, look at one."""

import argparse
from contextlib import suppress
from pathlib import Path

from o2o_lightning.checkpoint.handover import read_checkpoint
from o2o_lightning.cli import policy_look
from o2o_lightning.cli.arguments import Parser
from o2o_lightning.cli.data import KWARGS
from o2o_lightning.cli.policy_import import import_policy
from o2o_lightning.cli.show import refuse_existing, say
from o2o_lightning.errors import UserError
from o2o_lightning.nn.decision_transformer import SequencePolicy
from o2o_lightning.policies import black_box
from o2o_lightning.policies.onnx_layers import NotLayersError
from o2o_lightning.policies.read import FORMATS, recognise

DEFAULTS = {"states": 1000, "episodes": 10, "seed": 1000}  # of an import that compares and evaluates
FAMILIES = ("deterministic", "gaussian", "squashed_gaussian")


def main(argv: list[str]) -> int:
    """Runs ``o2o policy ARGV`` and returns the exit code."""
    whole = parser()
    arguments, rest = whole.parse_known_args(argv)
    if rest and arguments.command not in ("clone", "import"):
        whole.error(f"unrecognized arguments: {rest[0]}")
    arguments.rest = rest
    runs = {"import": _import, "clone": _clone, "export": _export, "inspect": _inspect,
            "list": policy_look.show_list}  # fmt: skip
    return runs[arguments.command](arguments)


def parser() -> Parser:
    """The options of every sub-command."""
    whole = Parser(prog="o2o policy", description=__doc__)
    commands = whole.add_subparsers(dest="command", metavar="COMMAND", required=True)
    source, place = Parser(add_help=False), Parser(add_help=False)
    source.add_argument("file", metavar="FILE", help="a policy file, or module:function")
    source.add_argument("--format", default="auto", choices=FORMATS, help="default: by what the file holds")
    source.add_argument("--normalizer", help="observation statistics: JSON, NPZ or VecNormalize's pickle; none")
    source.add_argument("--activation", help="of the hidden layers, where the file does not tell")
    source.add_argument("--family", choices=FAMILIES, help="of a plain state dict, or of the clone of a black box")
    source.add_argument("--mean", choices=("tanh", "linear"), help="of a Gaussian, where the file does not tell")
    source.add_argument("--time_feature", type=float, help="value for a remaining-time input that the dataset lacks")
    source.add_argument("--layout", help="parts of a dictionary observation in the policy's order: a,b,c")
    place.add_argument("--dataset", "--data.dataset", dest="dataset", help="states to compare in, and actions' bounds")
    place.add_argument("--env_id", "--data.env_id", dest="env_id", help="environment to evaluate in")
    units = "what its actions are counted in: the environment's own units, or scaled to [-1, 1]"
    place.add_argument("--actions", choices=("native", "unit"), help=units)
    place.add_argument("--run_dir", help="where results go")

    bring = commands.add_parser("import", parents=[source, place], help="a policy of another library as a checkpoint")
    bring.add_argument("--out", help="checkpoint to write (default: RUN_DIR/import/checkpoints/last.ckpt)")
    bring.add_argument("--env_kwargs", "--data.env_kwargs", dest="env_kwargs", **KWARGS)
    bring.add_argument("--reference", help="NPZ of observations and the source's own actions there, to be the same")
    bring.add_argument("--states", type=int, help="states of the comparison (default: 1000)")
    bring.add_argument("--episodes", "--data.eval_episodes", dest="episodes", type=int, help="default: 10")
    bring.add_argument("--seed", "--data.eval_seed", dest="seed", type=int, help="of their starts; default: 1000")

    distilled = "distil any policy on a dataset's states; takes options of `o2o fit`"
    commands.add_parser("clone", parents=[source, place], help=distilled)

    export = commands.add_parser("export", help="a checkpoint's policy as one file: raw observations to native actions")
    export.add_argument("file", metavar="CKPT", help="a checkpoint of any phase")
    export.add_argument("--format", default="torch", choices=("torch", "onnx"), help="default: torch (torch.export)")
    export.add_argument("--out", help="file to write; must not exist (default: policy.pt2 or policy.onnx beside CKPT)")
    export.add_argument("--policy", default="actor", choices=("actor", "reference", "offline"), help="default: actor")
    export.add_argument("--env_id", "--data.env_id", dest="env_id", help="whose action bounds (default: CKPT's own)")

    inspect = commands.add_parser("inspect", parents=[source], help="what a policy file or checkpoint holds")
    inspect.add_argument("--json", action="store_true", help="print JSON")
    known = commands.add_parser("list", help="what can come in, by library and algorithm")
    known.add_argument("--json", action="store_true", help="print JSON")
    return whole


def _import(arguments: argparse.Namespace) -> int:
    format, reason = _format(arguments)
    given = {name: value for name, value in vars(arguments).items() if value is not None}
    if format not in black_box.FORMATS or (format == "onnx" and not arguments.rest):
        with suppress(NotLayersError):
            return import_policy(argparse.Namespace(**{**vars(arguments), **DEFAULTS, **given}), format, reason)
    say(f"{arguments.file}: {format} ({reason}). It is a black box: cloning it")
    return _run_clone(arguments, format)


def _format(arguments: argparse.Namespace) -> tuple[str, str]:
    return recognise(arguments.file) if arguments.format == "auto" else (arguments.format, "as asked")


# ---- clone -------------------------------------------------------------------------------------------------------


def _clone(arguments: argparse.Namespace) -> int:
    if _is_checkpoint(arguments.file):
        return _run_clone(arguments, None)
    format, _ = _format(arguments)
    if format not in black_box.FORMATS:
        raise UserError(
            f"policy {arguments.file}: it is a {format} file. Import it first, then clone the checkpoint: "
            f"`o2o policy import {arguments.file}`."
        )
    return _run_clone(arguments, format)


def _run_clone(arguments: argparse.Namespace, format: str | None) -> int:
    from o2o_lightning.cli import fit

    for name in ("normalizer", "activation", "mean", "time_feature", "layout", "states", "out", "reference"):
        if getattr(arguments, name, None) is not None:
            raise UserError(f"--{name}: it does not apply to {arguments.file}, which is cloned. Leave it out.")
    if format is None and arguments.actions is not None:
        raise UserError(f"--actions: it does not apply to {arguments.file}, a checkpoint of ours. Leave it out.")
    if arguments.family is None:
        raise UserError("o2o policy clone: no family. Pass --family squashed_gaussian, gaussian or deterministic.")
    given = {"--model.teacher_format": format, "--model.family": arguments.family, "--data.dataset": arguments.dataset,
             "--model.teacher_actions": arguments.actions,
             "--data.env_id": arguments.env_id, "--data.eval_episodes": getattr(arguments, "episodes", None),
             "--data.eval_seed": getattr(arguments, "seed", None), "--run_dir": arguments.run_dir}  # fmt: skip
    options = [token for name, value in given.items() if value is not None for token in (name, str(value))]
    teacher = "--model.init_from" if format is None else "--model.teacher"
    return fit.main(["--phase", "clone", teacher, arguments.file, *options, *arguments.rest])


def _is_checkpoint(file: str) -> bool:
    try:
        read_checkpoint(file)
    except UserError:
        return False
    return True


# ---- export --------------------------------------------------------------------------------------------


def _export(arguments: argparse.Namespace) -> int:
    from o2o_lightning.policies.export import DeployedActor, DeployedSequence, export
    from o2o_lightning.policies.load import load_policy

    suffix = "pt2" if arguments.format == "torch" else "onnx"
    target = Path(arguments.out or Path(arguments.file).parent / f"policy.{suffix}")
    refuse_existing("--out", target)
    loaded = load_policy(arguments.file, arguments.policy, arguments.env_id)
    units = "[-1, 1]" if loaded.env_id is None else f"the units of {loaded.env_id}"
    kind = DeployedSequence if isinstance(loaded.policy, SequencePolicy) else DeployedActor
    deployed = kind(loaded.policy, loaded.normalizer, loaded.low, loaded.high)
    origin = {"env_id": loaded.env_id, "layout": list(loaded.source.layout)}
    apart = export(deployed, target, arguments.format, origin)
    for line in deployed.described(units):
        say(f"{target}: {line}")
    say(f"checked on made-up inputs: at most {apart:.1g} of half the action range from the checkpoint")
    return 0


def _inspect(arguments: argparse.Namespace) -> int:
    return policy_look.inspect(arguments, None if _is_checkpoint(arguments.file) else _format(arguments))
