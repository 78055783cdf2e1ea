"""What one phase hands to the next: a self-describing part of every checkpoint, tensors and primitives only."""

import pickle
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from o2o_lightning.checkpoint import inert
from o2o_lightning.errors import UserError, refusing
from o2o_lightning.launch import note_once
from o2o_lightning.nn.actor import Actor, Policy
from o2o_lightning.nn.actors import build_policy
from o2o_lightning.nn.critics import Critics, ValueNet
from o2o_lightning.nn.normalizer import Normalizer
from o2o_lightning.nn.optimizers import MOMENTS, laid_out_as

Net = TypeVar("Net", bound=nn.Module)

KEY = "o2o"
FORMAT = 1
POLICIES = ("offline", "import", "clone")  # phases that hand on a policy to start from
PHASES = (*POLICIES, "reevaluate", "align", "online")


@dataclass
class Handover:
    """A policy, perhaps critics or a state-value network, and where they come from.

    ``state`` holds the networks' tensors under ``actor.…``, ``critic.…``, ``target_critic.…``, ``value.…``,
    ``offline_actor.…``; ``aligned`` is False where an alignment was to reach a goal and has not; ``stands_for`` names
    the network that is the run's policy; ``adam`` the optimizer's moments by parameter name; ``scores`` what
    evaluations have said so far; ``origin`` the algorithm that made π_off, passed on by cloning and every later phase.
    """

    phase: str
    algorithm: str
    actor: dict[str, Any]
    critic: dict[str, Any] | None
    normalizer: dict[str, Any]
    env_id: str | None
    manifest: dict[str, Any]
    origin: str = ""
    stands_for: str = "actor"
    aligned: bool = True
    value: dict[str, Any] | None = None
    layout: list[str] = field(default_factory=list)
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, float | None] = field(default_factory=dict)
    returns: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT
    path: str = ""
    state: dict[str, Tensor] = field(default_factory=dict)
    adam: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.origin = self.origin or self.algorithm

    def pack(self) -> dict[str, Any]:
        """The part that is written under ``checkpoint["o2o"]``; the tensors are in the checkpoint already."""
        return {k: v for k, v in vars(self).items() if k not in ("path", "state", "adam")}

    def kwargs_in(self, env_id: str | None) -> dict[str, Any]:
        """What the environment was made with, where it is still that one; nothing in another."""
        return self.env_kwargs if env_id == self.env_id else {}

    def build_policy(self, prefix: str | None = None) -> Policy:
        """The policy stored under ``prefix``; what the checkpoint stands for where there is none so named.

        The result of an offline phase, a clone or an import is what later phases call π_off.
        """
        if prefix is None or (prefix == "offline_actor" and self.phase in POLICIES) or not self.has(prefix):
            prefix = self.stands_for
        return self._made(lambda: build_policy(self.actor), prefix)

    def build_actor(self, prefix: str | None = None) -> Actor:
        """As :meth:`build_policy`, where only a policy without memory will do."""
        policy = self.build_policy(prefix)
        if not isinstance(policy, Actor):
            raise UserError(
                f"checkpoint {self.path}: its policy is a {policy.kind}, which acts on the episode so far. "
                f"Clone it first: `o2o policy clone {self.path} --family deterministic`."
            )
        return policy

    def build_critic(self, prefix: str = "critic") -> Critics:
        """The critics stored under ``prefix`` (``critic`` or ``target_critic``)."""
        if self.critic is None or not self.has(prefix):
            raise UserError(
                f"checkpoint {self.path}: it holds a policy without an action-value critic. "
                "Run `--phase reevaluate` on it first."
            )
        spec: Any = self.critic
        return self._made(lambda: Critics(**spec), prefix)

    def build_value(self) -> ValueNet | None:
        """The state-value network, None where the checkpoint has none."""
        spec: Any = self.value
        return None if spec is None else self._made(lambda: ValueNet(**spec), "value")

    def build_normalizer(self) -> Normalizer:
        """The observation normaliser that the policy was trained with."""
        with _well_formed(self.path):
            return Normalizer.from_state(self.normalizer)

    def check_policy(
        self, kind: str | None, sizes: tuple[int, int], algorithm: str, layout: Sequence[str] = ()
    ) -> None:
        """Refuses a policy of another family than ``kind`` (None for any), of other sizes or columns than the data's.

        ``layout``: parts of a dictionary observation in the data's order.
        """
        if kind not in (None, self.actor["kind"]):
            raise UserError(
                f"checkpoint {self.path}: its policy is {self.actor['kind']}, {algorithm} fine-tunes a {kind} one. "
                f"Clone it first: `o2o fit --phase clone --model.init_from {self.path} --model.family {kind}`."
            )
        if self.layout and layout and [*layout] != self.layout:
            raise UserError(
                f"checkpoint {self.path}: its policy takes the observation's parts as {','.join(self.layout)}, the "
                f"data has them as {','.join(layout)}. Pass --data.observation_layout [{','.join(self.layout)}], or a "
                "dataset of that order."
            )
        own = (self.actor["observation_dim"], self.actor["action_dim"])
        if own != sizes:
            raise UserError(
                f"checkpoint {self.path}: its policy takes {own[0]} observation values and gives {own[1]} action "
                f"values, the data has {sizes[0]} and {sizes[1]}. Pass the dataset and environment it was trained for."
            )

    def has(self, prefix: str) -> bool:
        """Whether a network is stored under ``prefix``."""
        return any(key.startswith(prefix + ".") for key in self.state)

    def carry_moments(self, optimizer: torch.optim.Optimizer, scales: Mapping[str, float] | None = None) -> None:
        """Gives each parameter that this phase trained as well the Adam moments that it had there.

        ``scales``, by name of a group, is how many times as large its gradients are from now on: the moments are then
        those of so scaled gradients. 0 leaves the group without any.
        """
        for group in optimizer.param_groups:
            scale = (scales or {}).get(group["name"], 1.0)
            if scale == 0.0:
                continue
            for name, parameter in zip(group["param_names"], group["params"], strict=True):
                moments = self.adam.get(_network_name(name) or "")
                if moments is not None and moments["exp_avg"].shape == parameter.shape:
                    # all of it where the parameter is: Lightning would leave the step's count behind, on the CPU
                    own = {key: value.to(parameter.device, copy=True) for key, value in moments.items()}
                    for key, factor in zip(MOMENTS, (scale, scale**2), strict=True):
                        own[key] = laid_out_as(parameter, own[key] if scale == 1.0 else own[key] * factor)
                    optimizer.state[parameter] = own

    def load(self, net: Net, prefix: str) -> Net:
        """``net`` with the tensors stored under ``prefix``."""
        state = self._stored(prefix)
        load_weights(net, state, f"checkpoint {self.path}: {prefix}")
        if bad := [name for name, value in state.items() if not torch.isfinite(value).all()]:
            raise UserError(f"checkpoint {self.path}: '{prefix}.{bad[0]}' holds NaN or infinity. Pass another.")
        return net

    def _made(self, make: Callable[[], Net], prefix: str) -> Net:
        """The network stored under ``prefix``; of a size that its tensors do not have, nothing is allocated."""
        with _well_formed(self.path):
            if (layers := max(map(_layers, (self.actor, self.critic or {}, self.value or {})))) > len(self.state):
                raise ValueError(f"it declares {layers:,} layers, and has {len(self.state)} tensors")
            with torch.device("meta"):
                _check_fit(make(), self._stored(prefix), f"checkpoint {self.path}: {prefix}")
            net = make()
        return self.load(net, prefix)

    def _stored(self, prefix: str) -> dict[str, Tensor]:
        return {key[len(prefix) + 1 :]: value for key, value in self.state.items() if key.startswith(prefix + ".")}

    def load_scalar(self, parameter: nn.Parameter, name: str) -> None:
        """``parameter`` as it is stored under ``name``, or as it is where nothing is."""
        if name in self.state:
            parameter.data.copy_(self.state[name])


def load_weights(net: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Loads ``state`` strictly; another set of names or shapes is a one-line :class:`UserError`."""
    _check_fit(net, state, where)
    net.load_state_dict(state)


def _check_fit(net: nn.Module, state: dict[str, Tensor], where: str) -> None:
    expected = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in state.items()}
    for key in expected.keys() | found.keys():
        if expected.get(key) != found.get(key):
            raise UserError(
                f"{where}: '{key}' has shape {found.get(key, 'nothing')}, this network needs "
                f"{expected.get(key, 'nothing')}. Pass a checkpoint of the same sizes."
            )


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint without executing anything in it; :class:`UserError` for what is not one."""
    path = Path(path)
    if not path.is_file():
        kind = "a directory" if path.is_dir() else "missing"
        raise UserError(f"checkpoint {path}: {kind}. Pass a file such as RUN_DIR/PHASE/checkpoints/last.ckpt.")
    with refusing(f"checkpoint {path}: it cannot be read", "It may be cut off or damaged; pass another."):
        try:
            checkpoint = inert.load(path)
        except pickle.UnpicklingError as error:
            raise UserError(
                f"checkpoint {path}: it holds something other than tensors and plain values, so it was not loaded. "
                "Pass a checkpoint that o2o wrote, or import a policy with `o2o policy import`."
            ) from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get(KEY), dict):
        raise UserError(
            f"checkpoint {path}: it was not written by o2o. Pass RUN_DIR/PHASE/checkpoints/last.ckpt, "
            "or import a policy with `o2o policy import`."
        )
    return checkpoint


def read_handover(path: str | Path, accepts: tuple[str, ...] = PHASES, wanted_by: str = "") -> Handover:
    """The hand-over part of a checkpoint, with its networks and Adam moments.

    Raises:
        UserError: unreadable, not ours, of a newer format, or of a phase that ``wanted_by`` cannot start from.
    """
    checkpoint = read_checkpoint(path)
    payload = checkpoint[KEY]
    with _well_formed(path):
        if payload.get("format", 0) > FORMAT:
            raise UserError(f"checkpoint {path}: a newer o2o-lightning wrote it. Upgrade with `pip install -U`.")
        handover = Handover(**payload, path=str(path))
        handover.state = {name: value for k, value in checkpoint["state_dict"].items() if (name := _network_name(k))}
        handover.adam = _adam_by_name(checkpoint.get("optimizer_states") or [])
    if handover.phase not in accepts:
        raise UserError(
            f"checkpoint {path}: it was written by phase '{handover.phase}', and `{wanted_by}` starts from "
            f"{' or '.join(accepts)}. Pass --model.init_from RUN_DIR/{accepts[0]}/checkpoints/last.ckpt."
        )
    return handover


def _well_formed(path: str | Path) -> AbstractContextManager[None]:
    """Turns what another program's, or a hand-made, checkpoint trips over into one line."""
    return refusing(f"checkpoint {path}: its hand-over part is incomplete", "Pass another.")


def check_dataset(where: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Compares two datasets by their manifests: one of the same name and another content is refused.

    Another one of another name is taken, and said: that may be what is wanted, and never goes unseen.
    """
    old, new = before.get("sha256"), now.get("sha256")
    if old is None or new is None or old == new:
        return
    if before["source"] == now["source"]:
        raise UserError(
            f"dataset {now['source']}: its content is not what {where} learned from (sha256 {old[:12]}… then, "
            f"{new[:12]}… now). Restore it; what is meant to be other data needs another name, and a run of its own."
        )
    note_once(f"dataset {now['source']}: it is not what {where} learned from, which was {before['source']}.")


def _layers(spec: dict[str, Any]) -> int:
    """How many a network of these sizes has at least, whatever its family."""
    own = len(spec.get("hidden", ())) * int(spec.get("count", 1)) + int(spec.get("layers", 0))
    return own + sum(map(_layers, spec.get("members", ())))


def _network_name(key: str) -> str | None:
    """The name of a tensor of a method's networks, None of another; version 0.1 named some otherwise."""
    if key.startswith("reference."):
        return f"reference_policy.{key.removeprefix('reference.')}"
    owner, _, name = key.partition(".")
    return name if owner in ("method", "agent") else None


def _adam_by_name(optimizer_states: list[dict[str, Any]]) -> dict[str, dict[str, Tensor]]:
    if not optimizer_states:
        return {}
    moments = optimizer_states[0]["state"]
    named: dict[str, dict[str, Tensor]] = {}
    for group in optimizer_states[0]["param_groups"]:
        for name, index in zip(group.get("param_names", ()), group["params"], strict=False):
            if index in moments and (own := _network_name(name)):
                named[own] = moments[index]
    return named
