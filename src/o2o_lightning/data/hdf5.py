"""Reads datasets from HDF5 files with h5py alone."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from o2o_lightning.data.columns import FileInfos, names
from o2o_lightning.data.ends import Ends, ends_of, jumps
from o2o_lightning.data.guarded import dataset, find, numbers, open_hdf5
from o2o_lightning.data.layouts import Arrays, arrays_of
from o2o_lightning.data.raw import NOTHING, RawDataset, Said, recorded_layout
from o2o_lightning.launch import note_once

LAZY_BYTES = 2**29


def read_hdf5(
    path: str | Path,
    *,
    source: str | None = None,
    said: Said = NOTHING,
    sha256: str | None = None,
    lazy_bytes: int = LAZY_BYTES,
) -> RawDataset:
    """Reads a file of one of the layouts of :mod:`o2o_lightning.data.layouts`.

    Args:
        path, source: of the file, and what messages and manifests call it, its path by default.
        said: what the user says of it; of that, the environment is trusted where the file's own is not.
        sha256: the file's digest, where the caller has it already.
        lazy_bytes: above this size, wide arrays stay in the file and are read in slices.

    Raises:
        UserError: the path is no readable HDF5 file, or a mandatory array is missing or not numeric.
    """
    path, source = Path(path), source or str(path)
    with open_hdf5(path, source) as file:
        arrays = arrays_of(file, path, source, said, lazy_bytes)
        metadata, infos = _metadata(file), names(find(file, "infos"))
    own_id = metadata.get("env_id")
    limit = said.limit or _env_horizon(said.env_id or own_id, foreign=not said.env_id)
    terminated, truncated = _ends(source, arrays, said, metadata, limit)
    told = metadata.get("action_units")
    return RawDataset(
        observations=arrays.columns["observations"],
        actions=arrays.columns["actions"],
        rewards=arrays.rewards,
        terminated=terminated,
        truncated=truncated,
        next_observations=arrays.columns.get("next_observations"),
        infos=FileInfos(path, infos, source),
        metadata=metadata,
        source=source,
        sha256=sha256 or file_sha256(path),
        env_id=said.env_id or own_id,
        units=said.units or (told if told in ("native", "unit") else None),
        parts=said.layout,
        layout=recorded_layout(metadata),
    )


def _ends(source: str, arrays: Arrays, said: Said, metadata: Mapping[str, Any], limit: int | None) -> Ends:
    terminals, timeouts, cut = arrays.terminals, arrays.timeouts, arrays.cut
    if terminals.ndim != 1 or (timeouts is not None and timeouts.shape != terminals.shape):
        return Ends(terminals, terminals if timeouts is None else timeouts)  # what the check of shapes will refuse
    meaning = said.terminals if said.terminals != "auto" else arrays.meaning
    if meaning == "auto" and metadata.get("terminals") == "terminated":
        meaning = "terminated"
    successors, observations = arrays.columns.get("next_observations"), arrays.columns["observations"]
    whole = successors is not None and successors.shape == observations.shape == (len(terminals), *successors.shape[1:])
    if timeouts is None and cut is None and successors is not None and whole:
        cut = jumps(observations, successors)
        if found := int((cut & ~terminals).sum()):
            note_once(
                f"dataset {source}: it has no 'timeouts', and {found} of its rows are not followed by their next "
                "observation: they count as time-outs."
            )
    if timeouts is None and limit is None and arrays.cut is None and (cut is None or not cut.any()):
        ends = "only terminal rows end its episodes" if terminals.any() else "it counts as one episode"
        note_once(
            f"dataset {source}: it has no 'timeouts', and no known environment whose time limit could stand in for "
            f"them: {ends}. Pass its env_id, or add the array."
        )
    return ends_of(source, terminals, timeouts, meaning, limit, cut)


def _env_horizon(env_id: Any, foreign: bool) -> int | None:
    """Its registered step limit, without making it; None where unknown, as of a file's own id with a module's name."""
    if not isinstance(env_id, str) or (foreign and ":" in env_id):
        return None
    from o2o_lightning.envs.make import registered

    found = registered(env_id)
    return found.max_episode_steps if found else None


def file_sha256(path: Path) -> str:
    """Hexadecimal digest of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def _metadata(file: h5py.File) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    group = find(file, "metadata")
    for name in names(group):
        # the acting policy's weights live here too, and only small values are provenance
        if name.startswith("policy/") or not 0 < (group[name].size or 0) <= 64:
            continue
        metadata[name] = _plain(numbers(dataset(group, name)))
    if "env_id" not in metadata and isinstance(one := file.attrs.get("env_id"), str):
        metadata["env_id"] = one
    one = metadata.get("env_id")
    if isinstance(one, list) and len(one) == 1:
        metadata["env_id"] = one[0]
    return metadata


def _plain(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
