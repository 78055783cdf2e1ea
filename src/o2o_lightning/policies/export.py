"""A checkpoint's policy as one file with normalisation and action bounds inside: raw observations to native actions."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from o2o_lightning.checkpoint.io import write_atomically
from o2o_lightning.errors import UserError
from o2o_lightning.nn.actor import Actor, FloatArray
from o2o_lightning.nn.mlp import MLP
from o2o_lightning.nn.normalizer import Normalizer
from o2o_lightning.nn.squashed_gaussian import ACTION_LIMIT
from o2o_lightning.policies.black_box import Function, load_onnx, load_torch_export
from o2o_lightning.policies.onnx_file import Graph, Node, encode

TOLERANCE = 1e-6
OPERATORS = {"relu": "Relu", "tanh": "Tanh", "elu": "Elu", "leaky_relu": "LeakyRelu"}


class Deployed(nn.Module):
    """Raw observations ``[B, S]`` to actions ``[B, A]`` in the environment's own units."""

    def __init__(self, actor: Actor, normalizer: Normalizer, low: FloatArray, high: FloatArray) -> None:
        super().__init__()
        self.actor, self.normalizer = actor, normalizer
        self.register_buffer("low", torch.from_numpy(np.array(low, np.float32)))
        self.register_buffer("reach", torch.from_numpy(np.array((high - low) / 2, np.float32)))

    def forward(self, observation: Tensor) -> Tensor:
        """``[B, S] → [B, A]``."""
        unit = self.actor.mode(self.normalizer(observation)).clamp(-1.0, 1.0)
        return self.low + (unit + 1.0) * self.reach  # type: ignore[operator]


def export(policy: Deployed, path: str | Path, format: str) -> float:
    """Writes ``path``, reads it back and compares; the largest difference in units of half the action range.

    Raises:
        UserError: the file's actions are not the policy's.
    """
    policy = policy.eval().requires_grad_(False)
    content = _torch_bytes(policy) if format == "torch" else encode(onnx_graph(policy), "policy")
    write_atomically(path, content)
    read: Function = load_torch_export(str(path)) if format == "torch" else load_onnx(str(path))
    states = torch.randn(256, policy.actor.spec.observation_dim, generator=torch.Generator().manual_seed(0))
    states = states * (policy.normalizer.std + policy.normalizer.eps) + policy.normalizer.mean
    found = torch.as_tensor(read(states.numpy()))
    apart = float(((found - policy(states)).abs() / policy.reach).max())
    if not apart <= TOLERANCE:
        Path(path).unlink()
        raise UserError(f"export {path}: its actions are {apart:.1g} from the checkpoint's, so it was removed again.")
    return apart


def _torch_bytes(policy: Deployed) -> bytes:
    example = torch.zeros(2, policy.actor.spec.observation_dim)
    program = torch.export.export(policy, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def onnx_graph(policy: Deployed) -> Graph:
    """The same computation as an ONNX graph of basic operators."""
    actor, normalizer, spec = policy.actor, policy.normalizer, policy.actor.spec
    if spec.activation not in OPERATORS:
        raise UserError(f"export: ONNX is not written for the activation '{spec.activation}'. Pass --format torch.")
    body = actor.body
    assert isinstance(body, MLP)
    nodes: list[Node] = []
    constants: dict[str, FloatArray] = {}
    at = "observation"

    def add(op: str, *others: tuple[str, Tensor], **attributes: int) -> None:
        nonlocal at
        constants.update({name: value.detach().cpu().float().numpy() for name, value in others})
        nodes.append(Node(op, [at, *(name for name, _ in others)], [f"x{len(nodes)}"], dict(attributes)))
        at = nodes[-1].outputs[0]

    add("Sub", ("mean", normalizer.mean))
    add("Div", ("deviation", normalizer.std + normalizer.eps))
    if normalizer.clip is not None:
        add("Clip", ("lowest", torch.tensor(-normalizer.clip)), ("highest", torch.tensor(normalizer.clip)))
    layers = [(part.weight, part.bias) for part in body.linears if isinstance(part, nn.Linear)]
    for i, (weight, bias) in enumerate(layers):
        rows = spec.action_dim if i == len(layers) - 1 else len(bias)  # the log σ half of the output is left out
        add("Gemm", (f"weight{i}", weight[:rows]), (f"bias{i}", bias[:rows]), transB=1)
        if i < len(layers) - 1:
            add(OPERATORS[spec.activation])
    if spec.kind != "gaussian" or spec.mean == "tanh":
        add("Tanh")
    limit = ACTION_LIMIT if spec.kind == "squashed_gaussian" else 1.0
    add("Clip", ("least", torch.tensor(-limit)), ("most", torch.tensor(limit)))
    add("Add", ("one", torch.ones(())))
    add("Mul", ("reach", policy.reach))  # type: ignore[arg-type]
    add("Add", ("low", policy.low))  # type: ignore[arg-type]
    return Graph(nodes, constants, ["observation"], [at], (spec.observation_dim, spec.action_dim))
