"""How often the data's next action is the policy's own: what n-step targets of a re-evaluation could use.

    python benchmarks/agreement.py study/*/seed3/td3_bc/*/checkpoints/last.ckpt

A target of n steps is the policy's where actions 2 to n are its own. For each tolerance, as a share of half of an
action's range: how many next actions are within it in every dimension, and the targets' mean length, at most five.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from o2o_lightning.data.build import build_store
from o2o_lightning.data.spec import load_raw
from o2o_lightning.envs.make import env_spec
from o2o_lightning.policies.load import LoadedPolicy, load_policy
from o2o_lightning.replay.store import TransitionStore

TOLERANCES = (0.05, 0.1, 0.2)
LONGEST = 5


def lengths(own: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Steps that each row's target may have: one, and one more for each action behind it that is the policy's own.

    Args: ``own [N]`` whether a row's action is, ``ends [N]`` whether its episode ends with it. Returns ``[N]``.
    """
    found = np.ones(len(own), int)
    for row in range(len(own) - 2, -1, -1):
        if own[row + 1] and not ends[row]:
            found[row] = min(LONGEST, 1 + found[row + 1])
    return found


def main(paths: list[str]) -> int:
    """A row a checkpoint."""
    print("| dataset | policy | " + " | ".join(f"within {tolerance}" for tolerance in TOLERANCES) + " |")
    print("|---|---|" + "---:|" * len(TOLERANCES))
    for path in paths:
        loaded = load_policy(path)
        assert loaded.env_id is not None
        source, width = loaded.source, loaded.policy.spec.observation_dim
        env = env_spec(loaded.env_id, width, source.layout, source.kwargs_in(loaded.env_id))
        store = build_store(load_raw(source.manifest["source"]), env)
        off = distances(loaded, store)
        ends = np.zeros(len(off), bool)
        ends[store.episodes[:, 1] - 1] = True
        known = ~ends[:-1]  # rows with an action behind them in their episode
        cells = []
        for tolerance in TOLERANCES:
            own = off <= tolerance
            cells.append(f"{own[1:][known].mean():.1%}, {lengths(own, ends).mean():.2f} steps")
        print(f"| {Path(source.manifest['source']).stem} | {source.algorithm} | {' | '.join(cells)} |")
    return 0


def distances(loaded: LoadedPolicy, store: TransitionStore) -> np.ndarray:
    """Of the data's actions from the policy's, ``[N]``: the largest of their dimensions, in halves of a range."""
    found = []
    for rows in range(0, len(store), 4096):
        batch = store.at(slice(rows, rows + 4096))
        found.append(np.abs(loaded.player.act(batch["observation"].numpy()) - batch["action"].numpy()).max(1))
    return np.concatenate(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
