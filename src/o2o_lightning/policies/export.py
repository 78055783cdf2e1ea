"""A checkpoint's policy as one file with normalisation and action bounds inside: raw observations to native actions."""

import copy
import io
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from o2o_lightning.checkpoint.io import write_atomically
from o2o_lightning.errors import UserError
from o2o_lightning.nn.actor import Actor, FloatArray, Policy
from o2o_lightning.nn.decision_transformer import SequencePolicy, Window
from o2o_lightning.nn.mlp import MLP
from o2o_lightning.nn.normalizer import Normalizer
from o2o_lightning.policies.black_box import onnx_tools
from o2o_lightning.policies.onnx_layers import description
from o2o_lightning.policies.parity import tolerance
from o2o_lightning.policies.program import load_program

CHECKED, CHECKED_WINDOWS = 256, 64  # made-up states, and windows of each length


class _Deployed(nn.Module):
    """A policy between raw observations and actions in the environment's own units.

    ``context`` is how many time steps it takes at most, ``samples`` are made-up inputs, the largest last, and
    ``described`` says to the user what goes in and comes out.
    """

    policy: Policy
    low: Tensor
    reach: Tensor

    def __init__(self, policy: Policy, normalizer: Normalizer, low: FloatArray, high: FloatArray) -> None:
        super().__init__()
        self.policy, self.normalizer = policy, normalizer
        self.register_buffer("low", torch.from_numpy(np.array(low, np.float32)))
        self.register_buffer("reach", torch.from_numpy(np.array((high - low) / 2, np.float32)))

    def native(self, unit: Tensor) -> Tensor:
        """Actions of ``[-1, 1]``, clipped, in the environment's units."""
        return self.low + (unit.clamp(-1.0, 1.0) + 1.0) * self.reach

    def observations(self, *shape: int, seed: int) -> Tensor:
        """Made-up ones ``[*shape, S]`` of plausible sizes."""
        draw = torch.Generator().manual_seed(seed)
        noise = torch.randn(*shape, self.policy.spec.observation_dim, generator=draw)
        return noise * (self.normalizer.std + self.normalizer.eps) + self.normalizer.mean


class DeployedActor(_Deployed):
    """Raw observations ``[B, S]`` to actions ``[B, A]``."""

    policy: Actor
    context = 1

    def forward(self, observation: Tensor) -> Tensor:
        """``[B, S] → [B, A]``."""
        return self.native(self.policy.mode(self.normalizer(observation)))

    def samples(self) -> list[tuple[Tensor, ...]]:
        return [(self.observations(CHECKED, seed=0),)]

    def described(self, units: str) -> list[str]:
        sizes = self.policy.spec
        return [
            f"float32 observations [batch, {sizes.observation_dim}] to actions [batch, {sizes.action_dim}] in {units}"
        ]


class DeployedSequence(_Deployed):
    """The last T steps of episodes, oldest first, to actions ``[B, A]``.

    T is 1 at an episode's start, then one more a step up to the policy's acting context. At the first step the return
    to go is ``target_return``, later the previous one less the reward.
    """

    policy: SequencePolicy

    def forward(self, return_to_go: Tensor, observation: Tensor, action: Tensor, timestep: Tensor) -> Tensor:
        """``[B, T], [B, T, S], [B, T, A], [B, T] int64 → [B, A]``; the last action is not looked at."""
        unit = (action - self.low) / self.reach - 1.0
        window = Window(return_to_go * self.policy.spec.return_scale, self.normalizer(observation), unit, timestep)
        return self.native(self.policy.modes(window)[:, -1])

    @property
    def context(self) -> int:
        return self.policy.spec.acting_context

    def samples(self) -> list[tuple[Tensor, ...]]:
        return [self._windows(length) for length in sorted({1, (self.context + 1) // 2, self.context})]

    def described(self, units: str) -> list[str]:
        spec = self.policy.spec
        return [
            f"the last steps of an episode, 1 to {self.context}, oldest first: float32 return to go [batch, steps], "
            f"observations [batch, steps, {spec.observation_dim}], actions [batch, steps, {spec.action_dim}], "
            "int64 time step [batch, steps]",
            f"to actions [batch, {spec.action_dim}] in {units}; the last action that goes in is not looked at",
            f"return to go: {spec.target_return:g} when an episode begins, then less each reward; time step: 0, 1, "
            "2, …",
        ]

    def _windows(self, length: int) -> tuple[Tensor, ...]:
        spec, draw = self.policy.spec, torch.Generator().manual_seed(length)
        unit = torch.rand(CHECKED_WINDOWS, length, spec.action_dim, generator=draw)
        to_go = spec.target_return * torch.rand(CHECKED_WINDOWS, length, generator=draw)
        first = torch.randint(max(spec.horizon - length, 1), (CHECKED_WINDOWS, 1), generator=draw)
        observation = self.observations(CHECKED_WINDOWS, length, seed=length)
        return to_go, observation, unit * 2 * self.reach + self.low, first + torch.arange(length)


Deployed = DeployedActor | DeployedSequence


def export(policy: Deployed, path: str | Path, format: str, origin: Mapping[str, Any] = MappingProxyType({})) -> float:
    """Writes ``path``, reads it back and compares; the largest difference in units of half the action range.

    ``origin``, ``env_id`` and ``layout``, goes into the metadata of an ONNX file.

    Raises:
        UserError: the format cannot hold the policy, or the file's actions are not the policy's.
    """
    policy = policy.eval().requires_grad_(False)
    samples = policy.samples()
    if format == "torch":
        write_atomically(path, _torch_bytes(policy, samples[-1]))
        program = load_program(str(path))
        found = [program(*inputs) for inputs in samples]
    else:
        write_atomically(path, _onnx_bytes(policy, origin))
        function = onnx_tools().load_onnx(str(path), policy.policy.spec.action_dim)
        found = [torch.as_tensor(function(observation.numpy())) for (observation,) in samples]
    exact = copy.deepcopy(policy).double()
    doubled = [[part.double() if part.is_floating_point() else part for part in inputs] for inputs in samples]
    there, single, double = (
        (torch.cat(actions) / policy.reach).numpy()
        for actions in (found, [policy(*inputs) for inputs in samples], [exact(*inputs) for inputs in doubled])
    )
    apart = float(np.abs(there - single).max())
    if not apart <= tolerance(policy.policy, single, double):
        Path(path).unlink()
        raise UserError(f"export {path}: its actions are {apart:.1g} from the checkpoint's, so it was removed again.")
    return apart


def _torch_bytes(policy: Deployed, inputs: tuple[Tensor, ...]) -> bytes:
    example, free = tuple(part[:2].clone() for part in inputs), {0: torch.export.Dim("batch")}
    if policy.context > 1:
        free[1] = torch.export.Dim("steps", max=policy.context)
    program = torch.export.export(policy, example, dynamic_shapes=(free,) * len(example))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def _onnx_bytes(policy: Deployed, origin: Mapping[str, Any]) -> bytes:
    body = getattr(policy.policy, "body", None)
    if not isinstance(policy, DeployedActor) or not isinstance(body, MLP):
        raise UserError(
            f"export: a {policy.policy.kind} is written as a torch.export program only. Pass --format torch, or clone "
            "it to a single policy without memory first."
        )
    said = description(policy.policy, origin)
    model = onnx_tools().write_onnx(body, policy.policy.spec, policy.normalizer, policy.low, policy.reach, said)
    return bytes(model.SerializeToString())
