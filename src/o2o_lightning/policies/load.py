"""A checkpoint's policy, ready to act: raw observations in, actions in the environment's own units out."""

from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from o2o_lightning.checkpoint.handover import Handover, read_handover
from o2o_lightning.envs.episodes import Player
from o2o_lightning.envs.make import env_spec, foreign_id, native_actions
from o2o_lightning.errors import UserError
from o2o_lightning.nn.actor import Policy
from o2o_lightning.nn.decision_transformer import SequencePolicy
from o2o_lightning.policies.history import player_of

FloatArray = NDArray[np.float32]
Which = Literal["actor", "reference", "offline"]
NAMES = {"actor": None, "reference": "reference_policy", "offline": "offline_actor"}  # networks; None: its run's


class LoadedPolicy:
    """A function of raw observations ``[S]`` or ``[B, S]`` to deterministic actions ``[A]`` or ``[B, A]``.

    Attributes:
        source: what the checkpoint says of itself.
        env_id: the environment whose units the actions have; of ``[-1, 1]`` where it is None.
        policy, normalizer: the network, and what makes its inputs of raw observations.
        low, high: bounds of the actions, ``[A]``.
        player: the same policy for episodes side by side, with actions in ``[-1, 1]``.
    """

    def __init__(self, source: Handover, policy: Policy, env_id: str | None) -> None:
        self.source, self.policy, self.env_id = source, policy, env_id
        self.normalizer = source.build_normalizer()
        self.low, self.high = _bounds(source, policy, env_id)
        self.player: Player = player_of(policy, self.normalizer)

    def __call__(self, observation: ArrayLike) -> FloatArray:
        """Actions at observations.

        Raises:
            UserError: of another width, or of a policy that acts on the episode so far.
        """
        if isinstance(self.policy, SequencePolicy):
            raise UserError(
                f"checkpoint {self.source.path}: its policy acts on the episode so far, not on one observation. Use "
                "its `player`, or clone it: `o2o policy clone`."
            )
        given, width = np.asarray(observation, np.float32), self.policy.spec.observation_dim
        if given.ndim not in (1, 2) or given.shape[-1] != width:
            shape = list(given.shape)
            raise UserError(
                f"checkpoint {self.source.path}: it takes observations [{width}] or [B, {width}], not {shape}."
            )
        actions = self.player.act(np.atleast_2d(given))
        return native_actions(actions, self.low, self.high).reshape(*given.shape[:-1], len(self.low))


def load_policy(checkpoint: str | Path, policy: Which = "actor", env_id: str | None = None) -> LoadedPolicy:
    """The policy of a checkpoint of any phase.

    Args:
        checkpoint: such as ``RUN_DIR/online/checkpoints/best.ckpt``.
        policy: ``actor`` (what the run stands for), ``reference`` (the best one that constrained fine-tuning kept) or
            ``offline``.
        env_id: another environment than the checkpoint's own.

    Raises:
        UserError: not a checkpoint of ours, without that policy, or with an environment of other sizes.
    """
    source = read_handover(checkpoint)
    own = env_id or foreign_id(source.env_id, f"checkpoint {checkpoint}")
    return LoadedPolicy(source, chosen(source, policy), own)


def chosen(source: Handover, policy: str) -> Policy:
    """One of the policies that a checkpoint holds, by its name in :data:`NAMES`."""
    keeps = source.has("reference_policy") and source.algorithm.startswith("o2")  # the others follow none
    if policy == "reference" and not keeps:
        raise UserError(
            f"checkpoint {source.path}: it holds no reference policy; only constrained fine-tuning keeps one. "
            "Pass policy actor, or a checkpoint of an online phase of O2SAC, O2TD3 or O2PPO."
        )
    return source.build_policy(NAMES[policy])


def _bounds(source: Handover, policy: Policy, env_id: str | None) -> tuple[FloatArray, FloatArray]:
    """Bounds ``[A]`` of the actions of ``env_id``, which must be of the policy's sizes; ±1 without one."""
    width, count = policy.spec.observation_dim, policy.spec.action_dim
    if env_id is None:
        return -np.ones(count, np.float32), np.ones(count, np.float32)
    env = env_spec(env_id, width, source.layout, source.kwargs_in(env_id))
    if env.action_dim != count:
        raise UserError(
            f"environment {env_id}: it takes {env.action_dim} action values, the policy gives {count}. Pass the "
            "environment id that belongs to the checkpoint."
        )
    return env.action_low, env.action_high
