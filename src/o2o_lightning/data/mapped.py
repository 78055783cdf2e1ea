"""Opens a dataset: its transitions are in memory, or large ones memory-mapped, converted once and then opened at once.

``CACHE/transitions/KEY/`` holds the rows in ``table.memmap``, and ``index.pt``. What a run writes to its rows stays in
its own memory. The key covers the dataset's digest and what decides the rows besides it, so that a folder is never
wrong, only unused; it may be deleted at any time.
"""

import dataclasses
import hashlib
import json
import mmap
import os
import shutil
import sys
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from filelock import FileLock

from o2o_lightning.data.build import build_store, layout_of, store_bytes
from o2o_lightning.data.download import cache_dir
from o2o_lightning.data.raw import RawDataset, reading
from o2o_lightning.data.spec import load_raw
from o2o_lightning.envs.make import EnvSpec, env_spec, foreign_id
from o2o_lightning.errors import Failure, UserError
from o2o_lightning.launch import note_once
from o2o_lightning.replay.manifest import Manifest
from o2o_lightning.replay.store import TransitionStore

FORMAT = 2  # of the folder; another one is built anew
INDEX, TABLE = "index.pt", "table.memmap"
NORESERVE = 0x4000 if sys.platform == "linux" else 0  # or a private map larger than the memory is refused
LIMIT = 2**29


class Opened(NamedTuple):
    """Transitions, their environment with its id, and the keys of its observations where it has several."""

    store: TransitionStore | None
    env: EnvSpec | None
    env_id: str | None
    layout: tuple[str, ...]


def open_dataset(
    dataset: str, env_id: str | None, layout: tuple[str, ...], memmap: bool | Literal["auto"], limit: int
) -> Opened:
    """The transitions of ``dataset``, to evaluate in ``env_id`` or their own environment; options as OfflineData's."""
    raw = load_raw(dataset, env_id=env_id)
    env_id = env_id or foreign_id(raw.env_id, f"dataset {dataset}")
    if raw.layout and layout and raw.layout != layout:
        note_once(
            f"dataset {raw.source}: its observations are {', '.join(raw.layout)}, as it says itself; "
            f"observation_layout {', '.join(layout)} is left unused."
        )
    layout = raw.layout or layout
    env = None if env_id is None else env_spec(env_id, raw.observations.shape[1], layout)
    store = load_store(raw, env, memmap, limit)
    if store.td_count == 0:
        raise UserError(
            f"dataset {dataset}: none of its {len(raw)} rows has a known successor, each is a time-out or the last "
            "one. Store 'next_observations', or correct 'timeouts'."
        )
    return Opened(store, env, env_id, layout)


def load_store(
    raw: RawDataset, env: EnvSpec | None, memmap: bool | Literal["auto"] = "auto", limit: int = LIMIT
) -> TransitionStore:
    """The transitions in memory, or memory-mapped: ``auto`` maps those of more than ``limit`` bytes."""
    mapped = store_bytes(raw) > limit if memmap == "auto" else memmap
    return mapped_store(raw, env, cache_dir()) if mapped else build_store(raw, env)


def mapped_store(raw: RawDataset, env: EnvSpec | None, cache: Path) -> TransitionStore:
    """As :func:`build_store`, with the same rows, but in files under ``cache`` that later calls find there.

    Raises:
        UserError: as :func:`build_store`; a cache that cannot be written, is full or damaged.
    """
    folder = cache / "transitions" / _key(raw, env)
    try:
        if not folder.exists():  # a finished one is whole, and its cache may be read-only
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.with_suffix(".lock")):
                if not folder.exists():
                    _convert(raw, env, folder)
    except OSError as error:
        raise UserError(
            f"dataset {raw.source}: its memory map in {folder.parent} cannot be written ({error.strerror or error}). "
            "Point the variable O2O_CACHE to a folder with space, or pass --data.memmap false."
        ) from error
    return _open(raw, env, folder)


def _key(raw: RawDataset, env: EnvSpec | None) -> str:
    digest = hashlib.sha256(raw.truncated.tobytes())  # a file without time-outs gets them from a horizon
    bounds = None if env is None else [env.action_low.tolist(), env.action_high.tolist(), env.horizon]
    facts = [FORMAT, raw.sha256, raw.next_observations is not None, bounds]
    digest.update(json.dumps(facts).encode())
    return digest.hexdigest()[:32]


def _convert(raw: RawDataset, env: EnvSpec | None, folder: Path) -> None:
    needed, free = store_bytes(raw), shutil.disk_usage(folder.parent).free
    if needed * 1.05 > free:  # a map that outgrows the disk kills the process
        raise UserError(
            f"dataset {raw.source}: its memory map takes {needed / 1e9:.1f} GB, {folder.parent} has {free / 1e9:.1f} "
            "GB left. Point the variable O2O_CACHE to a folder with space, or pass --data.memmap false."
        )
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    try:
        partial.mkdir()
        store = build_store(raw, env, partial / TABLE)
        index = {"td_rows": store.td_rows, "episodes": store.episodes, "complete": store.complete}
        torch.save({**index, "manifest": store.manifest.to_dict()}, partial / INDEX)
        for file in partial.iterdir():
            with file.open("rb") as written:
                os.fsync(written.fileno())
        os.replace(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _open(raw: RawDataset, env: EnvSpec | None, folder: Path) -> TransitionStore:
    remedy = "Delete that folder; the next run makes it anew."
    with reading(raw.source, f"its memory map {folder} cannot be read", remedy, refusal=Failure):  # fails anywhere
        index = torch.load(folder / INDEX, weights_only=True, mmap=True)
        manifest = Manifest(**index.pop("manifest"))
        if (size := (folder / TABLE).stat().st_size) != store_bytes(raw):  # a read past its end would be a crash
            raise ValueError(f"it has {size:,} bytes, not {store_bytes(raw):,}")
        with (folder / TABLE).open("rb") as file:
            access = mmap.PROT_READ | mmap.PROT_WRITE
            private = mmap.mmap(file.fileno(), size, flags=mmap.MAP_PRIVATE | NORESERVE, prot=access)
        rows = torch.frombuffer(private, dtype=torch.float32).view(len(raw), layout_of(raw).width)
    # the same rows may have another name now
    manifest = dataclasses.replace(manifest, source=raw.source, env_id=env.env_id if env else raw.env_id)
    return TransitionStore(matrix=rows, manifest=manifest, **index)
