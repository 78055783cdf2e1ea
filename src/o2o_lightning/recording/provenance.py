"""What a made dataset says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from o2o_lightning.checkpoint.handover import Handover
from o2o_lightning.envs.make import EnvSpec
from o2o_lightning.versions import library_versions

ENDS = "a time-out wins over a termination in the same step; the last (cut) episode is flagged as a timeout"


def provenance(
    level: str, seed: int, env: EnvSpec, source: Handover | None, steps: int, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """The group ``metadata``, texts and numbers.

    Args:
        level: ``random``, ``medium``, ``medium-replay``, ``expert`` or ``policy``.
        seed: of training, environment and noise.
        env: the environment.
        source: the policy, None for uniform actions.
        steps: most steps an episode.
        facts: of the training, or of the policy's file.
    """
    versions = ", ".join(f"{name} {version}" for name, version in library_versions().items())
    metadata = {"env_id": env.env_id, "level": level, "seed": seed, "versions": versions, **facts}
    if env.layout:
        metadata["obs_layout"] = ",".join(env.layout)
    if source is None:
        return {
            "algorithm": "random",
            "source": "uniformly random actions, recorded by o2o-lightning",
            "protocol": f"rollout, at most {steps} steps an episode; {ENDS}",
            **metadata,
        }
    kind = "deterministic" if source.actor["kind"] == "deterministic" else "stochastic"
    what = f"{kind} rollout of one policy, at most {steps} steps an episode"
    if level == "medium-replay":
        what = "replay buffer of the run until the policy reached its level, oldest transition first"
    origin = f"phase {source.phase} of o2o-lightning, in {source.env_id or 'an environment unknown'}"
    if "training_steps" in facts:
        origin = "from scratch, trained for this dataset by o2o-lightning"
    return {
        "algorithm": source.algorithm.upper(),
        "source": f"{source.algorithm.upper()}, {origin}",
        "protocol": f"{what}; next_observations stored; {ENDS}",
        **metadata,
    }
