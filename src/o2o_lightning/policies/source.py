"""A policy of another library, taken apart: plain tensors, and what they mean."""

import io
import zipfile
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from o2o_lightning.errors import UserError, refusing
from o2o_lightning.limits import allowed
from o2o_lightning.nn.actor import Actor, ActorSpec, FloatArray
from o2o_lightning.nn.actors import build_actor
from o2o_lightning.nn.normalizer import Normalizer

Array = NDArray[np.float64]
Linear = tuple[Array, Array]  # weight [out, in], bias [out]

MAX_BYTES, MAX_MEMBERS = 2**29, 10_000
CLONE = "Wrap it in a Python function of observations and clone that: `o2o policy clone module:function --family …`."
FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "relu": lambda x: np.maximum(x, 0.0),
    "tanh": np.tanh,
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0.0))),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "silu": lambda x: x / (1.0 + np.exp(-x)),
    "gelu": lambda x: 0.5 * x * (1.0 + torch.erf(torch.from_numpy(x / np.sqrt(2.0))).numpy()),
}


class BadPolicy(UserError):
    """What is wrong with a policy, and what to do; :func:`reading` adds its name."""


@contextmanager
def reading(spec: str | Path, kind: str = "policy") -> Iterator[None]:
    """Names the policy in what is found wrong with it."""
    try:
        yield
    except BadPolicy as error:
        raise UserError(f"{kind} {spec}: {error}") from error


def readable(wrong: str, advice: str) -> AbstractContextManager[None]:
    """Says ``wrong`` where the block fails: on damaged bytes a reader does so in any way, as foreign code does."""
    return refusing(wrong, advice, BadPolicy)


def check_file(path: Path) -> None:
    """Refuses what is not a file."""
    if not path.is_file():
        kind = "is a directory" if path.is_dir() else "is not there"
        raise BadPolicy(f"it {kind}. Pass a file.")


def read_limited(path: Path, limit: int = MAX_BYTES) -> bytes:
    """The content of what is a file, and not too large to be a policy."""
    check_file(path)
    if path.stat().st_size > limit:
        raise BadPolicy(f"it is larger than {limit >> 20} MB, too large for a policy. Pass another file.")
    return path.read_bytes()


def unzip(content: bytes, names: Container[str] | None = None) -> dict[str, bytes]:
    """The members of a zip, or those of ``names`` that are there, in memory."""
    if content.count(b"PK\1\2") > MAX_MEMBERS:
        raise BadPolicy(f"it has more than {MAX_MEMBERS:,} members, too many for a policy. Pass another file.")
    limit = min(MAX_BYTES, allowed(len(content)))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if min((member.header_offset for member in archive.infolist()), default=0):
            raise BadPolicy("it is a part of a zip, with another inside. Copy it again.")
        members = [member for member in archive.infolist() if names is None or member.filename in names]
        if sum(member.file_size for member in members) > limit:
            raise BadPolicy(f"it unpacks to more than {limit >> 20} MB. Pass another file.")
        if any(member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for member in members):
            raise BadPolicy("it is compressed in a way that no library writes. Pack it again.")
        # a limit, because the directory's sizes may lie
        return {member.filename: archive.open(member).read(limit) for member in members}


def packed(members: Mapping[str, bytes]) -> io.BytesIO:
    """A zip of members that were looked at, and of nothing else: other readers may find others in the user's bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    buffer.seek(0)
    return buffer


class Taken(NamedTuple):
    """What a reader takes: whose policies, which of them, and what they become here."""

    library: str
    policies: str
    family: str


@dataclass
class ImportedPolicy:
    """A multilayer perceptron with one of our output distributions.

    Attributes:
        format: what it was recognised as.
        algorithm: what trained it, where the file says so.
        layers: the hidden ones, then the output layer of the mean, or of the deterministic action before tanh.
        log_std: output layer of log σ of a squashed Gaussian, the vector ``[A]`` of a Gaussian; None: deterministic.
        activation: after each hidden layer.
        mean_kind: ``tanh`` or ``linear`` mean of a Gaussian.
        log_std_scale, log_std_offset: affine map of the log σ output.
        bounds: the range of actions that it was trained with, [−1, 1] included; None where that is not known.
        reach: lowest and highest of the environment's actions, where the file scales the tanh to them.
        normalizer: of observations; part of the policy.
        env_id: environment, where the file names it.
        notes: what was assumed, a sentence for each thing that it is of.
        layout: parts of a dictionary observation in the order of the columns, where the file tells.
        widths: of those parts, where the file tells.
        noise: exploration that our families have not, before it is replaced by a constant.
        altered: what was changed on purpose, so that the policy is no longer the source's own; None for nothing.
        time_column: which input is the remaining time, where the file or what lies beside it tells.
        whole: the same with that input, where it is held here.
        program: raw observations to the source's own actions, where the file is a program that has them.
        file: where it comes from.
    """

    format: str
    algorithm: str
    layers: list[Linear]
    log_std: Linear | Array | None = None
    activation: str = "relu"
    mean_kind: str = "tanh"
    log_std_scale: float = 1.0
    log_std_offset: float = 0.0
    bounds: tuple[Array, Array] | None = None
    reach: tuple[Array, Array] | None = None
    normalizer: Normalizer | None = None
    env_id: str | None = None
    notes: dict[str, str] = field(default_factory=dict)
    layout: tuple[str, ...] = ()
    widths: dict[str, int] = field(default_factory=dict)
    noise: object | None = None
    altered: str | None = None
    time_column: int | None = None
    whole: "ImportedPolicy | None" = None
    program: Callable[[FloatArray], FloatArray] | None = None
    file: str = ""

    @property
    def family(self) -> str:
        if self.log_std is None:
            return "deterministic"
        return "squashed_gaussian" if isinstance(self.log_std, tuple) else "gaussian"

    @property
    def mean(self) -> Linear:
        """The output layer of the mean, or of the deterministic action."""
        return self.layers[-1]

    @property
    def observation_dim(self) -> int:
        return int(self.layers[0][0].shape[1])

    @property
    def action_dim(self) -> int:
        return int(self.mean[0].shape[0])

    @property
    def spec(self) -> ActorSpec:
        """Family and sizes, as ours."""
        hidden = tuple(len(bias) for _, bias in self.layers[:-1])
        return ActorSpec(self.family, self.observation_dim, self.action_dim, hidden, self.activation, self.mean_kind)

    def normalized(self, observation: FloatArray) -> Array:
        """What the first layer takes, in float64."""
        x = observation.astype(np.float64)
        if self.normalizer is not None:
            scale = self.normalizer.std.numpy().astype(np.float64) + self.normalizer.eps
            x = (x - self.normalizer.mean.numpy().astype(np.float64)) / scale
            if self.normalizer.clip is not None:
                x = np.clip(x, -self.normalizer.clip, self.normalizer.clip)
        return x

    def actions(self, observation: FloatArray) -> FloatArray:
        """The source's own deterministic actions in ``[-1, 1]``, by plain float64 arithmetic on its tensors.

        Independent of our networks on purpose: the import is checked against it. ``[B, S] → [B, A]``.
        """
        x = self.normalized(observation)
        for weight, bias in self.layers[:-1]:
            x = FUNCTIONS[self.activation](x @ weight.T + bias)
        x = x @ self.mean[0].T + self.mean[1]
        if self.mean_kind == "tanh":
            x = np.tanh(x)
        if self.bounds is not None:
            low, high = self.bounds
            x = (x - low) / (high - low) * 2.0 - 1.0
        return np.asarray(np.clip(x, -1.0, 1.0), np.float32)

    def build_actor(self) -> Actor:
        """The same policy as one of our actors."""
        actor = build_actor(self.spec)
        state = actor.state_dict()
        (weight, bias), log_std = self.mean, self.log_std
        if self.bounds is not None:
            assert isinstance(log_std, np.ndarray)  # only a Gaussian acts in other units than [-1, 1]
            half, low = (self.bounds[1] - self.bounds[0]) / 2.0, self.bounds[0]
            weight, bias, log_std = weight / half[:, None], (bias - low) / half - 1.0, log_std - np.log(half)
        if isinstance(log_std, tuple):
            weight, bias = np.concatenate((weight, log_std[0])), np.concatenate((bias, log_std[1]))
            state["log_std_scale"] = torch.tensor(self.log_std_scale)
            state["log_std_offset"] = torch.tensor(self.log_std_offset)
        elif log_std is not None:
            state["raw_log_std"] = torch.from_numpy(np.asarray(log_std, np.float32))
        for i, layer in enumerate([*self.layers[:-1], (weight, bias)]):
            for part, values in zip(("weight", "bias"), layer, strict=True):
                state[f"body.linears.{i}.{part}"] = torch.from_numpy(values.astype(np.float32))
        actor.load_state_dict(state)
        return actor

    def build_normalizer(self) -> Normalizer:
        """Its normaliser, the identity where it has none."""
        return self.normalizer or Normalizer.identity(self.observation_dim)


def check(policy: ImportedPolicy) -> None:
    """Whether its layers fit one another and hold numbers.

    Raises:
        BadPolicy: sizes that do not fit, NaN or infinity, or an activation that we lack.
    """
    if policy.activation not in FUNCTIONS:
        raise BadPolicy(f"its activation '{policy.activation}' is none of {', '.join(FUNCTIONS)}. {CLONE}")
    layers, log_std = [*policy.layers], policy.log_std
    widths = [policy.observation_dim, *(len(weight) for weight, _ in layers[:-1])]
    if isinstance(log_std, tuple):  # beside the mean's layer
        layers, widths, log_std = [*layers, log_std], [*widths, widths[-1]], log_std[1]
    for i, ((weight, bias), width) in enumerate(zip(layers, widths, strict=True)):
        if weight.ndim != 2 or weight.shape[1] != width or bias.shape != weight.shape[:1]:
            raise BadPolicy(
                f"layer {i} has weight {weight.shape} and bias {bias.shape}, the one before "
                f"gives {width} values. The file is mixed up or of an architecture that is not known."
            )
    actions = policy.action_dim
    if log_std is not None and log_std.shape != (actions,):
        raise BadPolicy(f"log σ has {log_std.size} values, the mean has {actions}. Pass another file.")
    if policy.normalizer is not None and len(policy.normalizer.mean) != policy.observation_dim:
        raise BadPolicy(
            f"it takes {policy.observation_dim} observation values, its normalisation has "
            f"{len(policy.normalizer.mean)}. Pass the --normalizer that belongs to it."
        )
    arrays = [part for layer in layers for part in layer]
    arrays += [np.array([policy.log_std_scale, policy.log_std_offset]), *([] if log_std is None else [log_std])]
    normalizer = policy.build_normalizer()
    arrays += [normalizer.mean.numpy(), deviation := normalizer.std.numpy() + normalizer.eps]
    if not all(np.isfinite(array).all() for array in arrays) or not (deviation > 0).all():
        raise BadPolicy(
            "its numbers hold NaN, infinity, or observations of no deviation. Pass another checkpoint of it."
        )
