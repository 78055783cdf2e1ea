"""A sequence policy as one ``torch.export`` file: the raw episode so far to the next native action."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from o2o_lightning.checkpoint.io import write_atomically
from o2o_lightning.errors import UserError
from o2o_lightning.nn.actor import FloatArray
from o2o_lightning.nn.decision_transformer import SequencePolicy, SequenceSpec, Window
from o2o_lightning.nn.normalizer import Normalizer
from o2o_lightning.policies.export import TOLERANCE
from o2o_lightning.policies.program import load_program

CHECKED = 64  # windows of each length


class DeployedSequence(nn.Module):
    """The last T steps of episodes, oldest first, to actions ``[B, A]`` in the environment's own units.

    T is 1 at an episode's start, then one more a step up to the policy's acting context. At the first step the return
    to go is ``target_return``, later the previous one less the reward.
    """

    def __init__(self, policy: SequencePolicy, normalizer: Normalizer, low: FloatArray, high: FloatArray) -> None:
        super().__init__()
        self.policy, self.normalizer = policy, normalizer
        self.register_buffer("low", torch.from_numpy(np.array(low, np.float32)))
        self.register_buffer("reach", torch.from_numpy(np.array((high - low) / 2, np.float32)))

    def forward(self, return_to_go: Tensor, observation: Tensor, action: Tensor, timestep: Tensor) -> Tensor:
        """``[B, T], [B, T, S], [B, T, A], [B, T] int64 → [B, A]``; the last action is not looked at."""
        unit = (action - self.low) / self.reach - 1.0  # type: ignore[operator]
        window = Window(return_to_go * self.policy.spec.return_scale, self.normalizer(observation), unit, timestep)
        mode = self.policy.modes(window)[:, -1].clamp(-1.0, 1.0)
        return self.low + (mode + 1.0) * self.reach  # type: ignore[operator]


def export_sequence(policy: DeployedSequence, path: str | Path, format: str) -> float:
    """As :func:`o2o_lightning.policies.export.export`; ``format`` can be ``torch`` only."""
    if format != "torch":
        raise UserError(
            f"export: a {policy.policy.kind} is written as a torch.export program only. Pass --format torch, or clone "
            "it to a policy without memory first."
        )
    policy = policy.eval().requires_grad_(False)
    context = policy.policy.spec.acting_context
    example = _windows(policy, 2, context)
    batch = torch.export.Dim("batch")
    # a context of one step leaves nothing to vary
    steps = {0: batch, 1: torch.export.Dim("steps", max=context)} if context > 1 else {0: batch}
    program = torch.export.export(policy, example, dynamic_shapes=(steps,) * 4)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    write_atomically(path, buffer.getvalue())
    read = load_program(str(path))
    apart = 0.0
    for length in {1, (context + 1) // 2, context}:
        window = _windows(policy, CHECKED, length)
        apart = max(apart, float(((read(*window) - policy(*window)).abs() / policy.reach).max()))
    if not apart <= TOLERANCE:
        Path(path).unlink()
        raise UserError(f"export {path}: its actions are {apart:.1g} from the checkpoint's, so it was removed again.")
    return apart


def described(spec: SequenceSpec, units: str) -> list[str]:
    """What goes in and comes out, for the user."""
    return [
        f"the last steps of an episode, 1 to {spec.acting_context}, oldest first: float32 return to go [batch, steps], "
        f"observations [batch, steps, {spec.observation_dim}], actions [batch, steps, {spec.action_dim}], "
        "int64 time step [batch, steps]",
        f"to actions [batch, {spec.action_dim}] in {units}; the last action that goes in is not looked at",
        f"return to go: {spec.target_return:g} when an episode begins, then less each reward; time step: 0, 1, 2, …",
    ]


def _windows(policy: DeployedSequence, count: int, length: int) -> tuple[Tensor, ...]:
    """Made-up histories of plausible sizes."""
    spec, normalizer, draw = policy.policy.spec, policy.normalizer, torch.Generator().manual_seed(length)
    observation = torch.randn(count, length, spec.observation_dim, generator=draw)
    observation = observation * (normalizer.std + normalizer.eps) + normalizer.mean
    action = torch.rand(count, length, spec.action_dim, generator=draw) * 2 * policy.reach + policy.low  # type: ignore[operator]
    to_go = spec.target_return * torch.rand(count, length, generator=draw)
    first = torch.randint(max(spec.horizon - length, 1), (count, 1), generator=draw)
    return to_go, observation, action, first + torch.arange(length)
