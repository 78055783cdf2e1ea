"""Any policy file by what it holds, not by its name."""

import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

from o2o_lightning.errors import UserError
from o2o_lightning.limits import bounded
from o2o_lightning.nn.normalizer import Normalizer
from o2o_lightning.policies import black_box, d4rl_group, onnx_layers, sb3, state_dict
from o2o_lightning.policies.beside import has_time_feature, statistics_beside
from o2o_lightning.policies.d4rl_group import read_d4rl
from o2o_lightning.policies.onnx_layers import read_onnx
from o2o_lightning.policies.remaining_time import column_of_time, hold_time
from o2o_lightning.policies.sb3 import read_sb3
from o2o_lightning.policies.source import BadPolicy, ImportedPolicy, check, check_file, readable, reading
from o2o_lightning.policies.state_dict import read_state_dict
from o2o_lightning.policies.statistics import NotNormalizingError, read_statistics

FORMATS = ("auto", "sb3", "d4rl", "state_dict", *black_box.FORMATS)
READERS = {
    "sb3": sb3.TAKES, "d4rl": d4rl_group.TAKES, "state_dict": state_dict.TAKES, "onnx": onnx_layers.TAKES,
    "black box": black_box.TAKES,
}  # fmt: skip
_CALLABLE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")
APPLIES = {
    "sb3": ("activation", "time_feature"),
    "d4rl": ("activation", "time_feature"),
    "state_dict": ("activation", "family", "mean"),
    "onnx": ("family",),
}


def recognise(spec: str) -> tuple[str, str]:
    """The format of a policy file, and by what it was recognised.

    Raises:
        UserError: missing, a program that must be named as such, an o2o checkpoint, or nothing that is known.
    """
    path = Path(spec)
    if not path.exists() and _CALLABLE.match(spec):
        return "callable", "it names a function"
    with reading(spec):
        check_file(path)
        with path.open("rb") as file:
            start = file.read(8)
        if start.startswith(b"\x89HDF"):
            return "d4rl", "an HDF5 file"
        if start.startswith(b"PK"):
            return _recognise_zip(path)
        if path.suffix == ".onnx":
            return "onnx", "its name"
        if start.startswith(b"\x80") or path.suffix in (".pt", ".pth"):
            return "state_dict", "a torch file"
        if path.suffix == ".zip":
            raise BadPolicy("it is no zip, or its beginning is damaged. Copy it again.")
        raise BadPolicy(f"nothing of it is known. Pass --format, one of {', '.join(FORMATS[1:])}.")


def _recognise_zip(path: Path) -> tuple[str, str]:
    with readable("the zip is broken or cut off", "Copy it again."), zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if "policy.pth" in names:
        return "sb3", "a zip with policy.pth"
    if any("/code/" in name for name in names):
        raise BadPolicy("it is a TorchScript program. To run it, pass --format torchscript.")
    if any(name.endswith("archive_format") for name in names):
        raise BadPolicy("it is a torch.export program. To run it, pass --format torch_export.")
    if any(name.endswith("data.pkl") for name in names):
        return "state_dict", "a torch file"
    held = ", ".join(names[:4]) or "nothing"
    raise BadPolicy(f"a zip of {held}, and no policy.pth. Pass what Stable-Baselines3's `save` wrote.")


def read_policy(
    spec: str,
    format: str,
    normalizer: str | None = None,
    family: str | None = None,
    mean: str | None = None,
    activation: str | None = None,
    time_feature: float | None = None,
    layout: Sequence[str] = (),
) -> ImportedPolicy:
    """The policy of a file that is no black box: of an ONNX file, where its graph is a perceptron.

    Args:
        spec: the file.
        format: ``sb3``, ``d4rl``, ``state_dict`` or ``onnx``.
        normalizer: file of observation statistics; ``none`` for none, also where one lies beside the policy.
        family, mean: of a state dict, where names and shapes do not tell; an ONNX graph has no family.
        activation: of the hidden layers, where the file does not tell.
        time_feature: value at which an input of the remaining time is held.
        layout: parts of a dictionary observation in the policy's order, where the file does not tell.

    Raises:
        NotLayersError: an ONNX graph that is no perceptron of that family.
        UserError: as the readers do.
    """
    path = Path(spec)
    with reading(path), bounded(f"policy {path}"):
        given = {"family": family, "mean": mean, "activation": activation, "time_feature": time_feature}
        for name, value in given.items():
            if value is not None and name not in APPLIES[format]:
                raise UserError(f"--{name}: it does not apply to {path}, a {format} file. Leave it out.")
        if format == "sb3":
            policy = read_sb3(path)
        elif format == "d4rl":
            policy = read_d4rl(path, time_feature)
        elif format == "onnx":
            policy = read_onnx(path, family)
        else:
            policy = read_state_dict(path, family, mean)
        policy.file = str(path)
        if layout and policy.layout and tuple(layout) != policy.layout:
            raise UserError(
                f"--layout {','.join(layout)}: {path} itself says {','.join(policy.layout)}. Leave the option out."
            )
        policy.layout = policy.layout or tuple(layout)
        if activation is not None:
            policy.activation = activation
            policy.notes.pop("activation", None)
        _normalize(policy, path, format, normalizer)
        if format == "sb3" and (time_feature is not None or has_time_feature(path)):
            policy.time_column = column_of_time(policy)
        if format == "sb3" and time_feature is not None:
            hold_time(policy, time_feature)
        check(policy)
    return policy


def _normalize(policy: ImportedPolicy, path: Path, format: str, normalizer: str | None) -> None:
    """Takes the statistics that are asked for, or those beside a zip, and then says so."""
    if normalizer is not None and format == "onnx" and policy.normalizer is not None:
        raise UserError(f"--normalizer: the graph of {path} normalises observations itself. Leave it out.")
    if normalizer == "none":
        policy.normalizer = None
    elif normalizer is not None:
        _take_statistics(policy, normalizer)
        if (program := policy.program) is not None:
            policy.program = lambda states: program(policy.build_normalizer().numpy(states))
    elif format == "sb3":
        beside = statistics_beside(path)
        if beside is None:
            policy.notes["statistics"] = "no observation statistics: pass --normalizer if it learned with VecNormalize"
            return
        where = beside.relative_to(path.parent)
        try:
            _take_statistics(policy, beside)
            note = f"its observation statistics are those of {where} beside it (--normalizer none: none)"
        except NotNormalizingError:
            note = f"{where} beside it normalises no observations: none are normalised"
        policy.notes["statistics"] = note


def _take_statistics(policy: ImportedPolicy, path: str | Path) -> None:
    policy.normalizer, left = read_statistics(path, policy.layout, policy.widths)
    if left and policy.normalizer.clip is not None:
        policy.notes["left"] = (
            f"{', '.join(left)} are not normalised, but clipped as the others are, at ±{policy.normalizer.clip:g}"
        )


def describe(normalizer: Normalizer | None) -> str:
    """A normaliser in a few words."""
    if normalizer is None:
        return "none"
    clip = "" if normalizer.clip is None else f", clipped to ±{normalizer.clip:g}"
    return f"mean and deviation of {len(normalizer.mean)} values{clip}"
