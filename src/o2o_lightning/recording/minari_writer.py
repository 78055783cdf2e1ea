"""Writes a Minari dataset, by Minari's own means."""

import shutil
import warnings
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from o2o_lightning.envs.scores import reference_scores
from o2o_lightning.errors import UserError
from o2o_lightning.recording.writer import Block


def minari_path(dataset_id: str) -> Path:
    """Where Minari keeps ``dataset_id``.

    Raises:
        UserError: Minari is not installed, or the id is none.
    """
    try:
        from minari.dataset.minari_dataset import parse_dataset_id
        from minari.storage.datasets_root_dir import get_dataset_path
    except ImportError as error:
        raise UserError(
            "--format minari: the package minari is missing. Install it with `pip install 'o2o-lightning[minari]'`."
        ) from error
    try:
        parse_dataset_id(dataset_id)
    except ValueError as error:
        raise UserError(
            f"--output {dataset_id}: Minari's ids end in a version. Write hopper/random-v0, for instance."
        ) from error
    return Path(get_dataset_path(dataset_id))


def write_minari(dataset_id: str, block: Block, env_id: str, low: Any, high: Any, metadata: Mapping[str, Any]) -> None:
    """Writes the rows of ``block`` as ``dataset_id``, replacing what an interrupted attempt has left there.

    ``block`` has all rows, their last episode closed. Observations are flat, as the file's; simulator states and
    log-densities are left out. ``metadata`` is stored beside Minari's own.
    """
    import minari

    shutil.rmtree(minari_path(dataset_id), ignore_errors=True)
    lowest, highest = reference_scores(env_id) or (None, None)
    observations = gym.spaces.Box(-np.inf, np.inf, block["observations"].shape[1:], np.float32)
    versions = [entry.replace(" ", "==") for entry in str(metadata["versions"]).split(", ")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of authors and links that Minari would like to know
        dataset = minari.create_dataset_from_buffers(
            dataset_id,
            _episodes(block),
            env=gym.spec(env_id),
            algorithm_name=str(metadata["algorithm"]),
            observation_space=observations,
            action_space=gym.spaces.Box(low, high, dtype=np.float32),
            ref_min_score=lowest,
            ref_max_score=highest,
            description=f"{metadata['source']}; {metadata['protocol']}",
            requirements=[entry for entry in versions if entry.startswith(("gymnasium", "mujoco"))],
        )
        dataset.storage.update_metadata({f"o2o_{key}": value for key, value in metadata.items()})


def _episodes(block: Block) -> list[Any]:
    from minari.data_collector import EpisodeBuffer

    names = {"actions": "actions", "rewards": "rewards", "terminals": "terminations", "timeouts": "truncations"}
    episodes: list[Any] = []
    for start, stop in pairwise([0, *np.flatnonzero(block["terminals"] | block["timeouts"]) + 1]):
        observations = np.concatenate((block["observations"][start:stop], block["next_observations"][stop - 1 : stop]))
        columns = {name: block[key][start:stop] for key, name in names.items()}
        episodes.append(EpisodeBuffer(id=len(episodes), observations=observations, infos={}, **columns))
    return episodes
