"""An imported policy as a checkpoint that every phase accepts where it accepts an offline one."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from o2o_lightning.checkpoint.handover import KEY, Handover
from o2o_lightning.checkpoint.io import write_atomically
from o2o_lightning.policies.source import ImportedPolicy
from o2o_lightning.versions import library_versions


def write_handover(
    path: str | Path,
    policy: ImportedPolicy,
    env_id: str | None,
    scores: dict[str, float | None],
    returns: dict[str, float],
    manifest: dict[str, Any],
    layout: Sequence[str] = (),
) -> None:
    """Writes ``policy`` as a checkpoint of phase ``import``, tensors and primitives only."""
    actor = policy.build_actor()
    payload = Handover(
        phase="import",
        algorithm=policy.algorithm,
        actor=actor.spec.to_dict(),
        critic=None,
        normalizer=policy.build_normalizer().state(),
        env_id=env_id,
        manifest=manifest,
        scores=scores,
        returns=returns,
        versions=library_versions(),
        layout=list(layout),
    ).pack()
    buffer = io.BytesIO()
    state = {f"agent.actor.{name}": value for name, value in actor.state_dict().items()}
    torch.save({KEY: payload, "state_dict": state}, buffer)
    write_atomically(path, buffer.getvalue())
