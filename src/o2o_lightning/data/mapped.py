"""Opens a dataset: its transitions are in memory, or large ones memory-mapped, converted once and then opened at once.

``CACHE/transitions/KEY/`` holds the rows in ``table.memmap``, and ``index.pt`` with their CRC-32. What a run writes to
its rows stays in its own memory. The key covers the dataset's digest and what decides the rows besides it, so that a
folder is never wrong, only unused; it may be deleted at any time. All of it is read once when it is opened, before any
row is used: what has changed on the disk is made anew.
"""

import dataclasses
import hashlib
import json
import mmap
import os
import shutil
import sys
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from filelock import FileLock

from o2o_lightning.checkpoint import inert
from o2o_lightning.checkpoint.io import save_atomically, sync
from o2o_lightning.data.build import build_store, layout_of, store_bytes
from o2o_lightning.data.download import cache_dir
from o2o_lightning.data.raw import RawDataset, Said
from o2o_lightning.data.spec import load_raw
from o2o_lightning.envs.make import EnvSpec, env_spec, foreign_id, plain
from o2o_lightning.errors import Failure, UserError, reason, refusing
from o2o_lightning.launch import note_once
from o2o_lightning.replay.manifest import Manifest
from o2o_lightning.replay.store import TransitionStore

FORMAT = 3  # of the folder; another one is built anew
INDEX, TABLE = "index.pt", "table.memmap"
NORESERVE = 0x4000 if sys.platform == "linux" else 0  # or a private map larger than the memory is refused
LIMIT = 2**29
BLOCK = 2**20


class Opened(NamedTuple):
    """Transitions, their environment with its id, and the keys of its observations where it has several."""

    store: TransitionStore | None
    env: EnvSpec | None
    env_id: str | None
    layout: tuple[str, ...]


def open_dataset(
    dataset: str, said: Said, memmap: bool | Literal["auto"], limit: int, env_kwargs: Mapping[str, Any]
) -> Opened:
    """The transitions of ``dataset``, to evaluate where the user has ``said`` or where it says itself."""
    raw = load_raw(dataset, said=said)
    layout = said.layout
    env_id = said.env_id or foreign_id(raw.env_id, f"dataset {dataset}")
    if raw.layout and layout and raw.layout != layout:
        note_once(
            f"dataset {raw.source}: its observations are {', '.join(raw.layout)}, as it says itself; "
            f"observation_layout {', '.join(layout)} is left unused."
        )
    layout = raw.layout or layout
    if (made := raw.metadata.get("env_kwargs")) is not None and made != plain(env_kwargs):
        note_once(f"dataset {raw.source}: it was recorded with --data.env_kwargs '{made}', which are not given here.")
    env = None if env_id is None else env_spec(env_id, raw.observations.shape[1], layout, env_kwargs)
    store = load_store(raw, env, memmap, limit)
    if store.td_count == 0:
        raise UserError(
            f"dataset {dataset}: none of its {len(raw)} rows has a known successor, each is a time-out or the last "
            "one. Store 'next_observations', or correct 'timeouts'."
        )
    return Opened(store, env, env_id, layout if env is None else env.layout)


def opened_once() -> Callable[..., Opened]:
    """:func:`open_dataset` for several runs in one process: one copy of the rows, and caches of each one's own."""
    once: dict[str, Opened] = {}

    def open(*asked: Any) -> Opened:
        found = once[str(asked)] = once.get(str(asked)) or open_dataset(*asked)
        return found if found.store is None else found._replace(store=found.store.shared())

    return open


def load_store(
    raw: RawDataset, env: EnvSpec | None, memmap: bool | Literal["auto"] = "auto", limit: int = LIMIT
) -> TransitionStore:
    """The transitions in memory, or memory-mapped: ``auto`` maps those of more than ``limit`` bytes."""
    mapped = store_bytes(raw) > limit if memmap == "auto" else memmap
    return mapped_store(raw, env, cache_dir()) if mapped else build_store(raw, env)


def mapped_store(raw: RawDataset, env: EnvSpec | None, cache: Path) -> TransitionStore:
    """As :func:`build_store`, with the same rows, but in files under ``cache`` that later calls find there.

    Raises:
        UserError: as :func:`build_store`; a cache that cannot be written, or is full.
    """
    folder = cache / "transitions" / _key(raw, env)
    if (found := _whole(raw, env, folder)) is not None:  # its cache may be read-only
        return found
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if (found := _whole(raw, env, folder)) is None:  # nor has another process made it meanwhile
                _convert(raw, env, folder)
    except OSError as error:
        raise UserError(
            f"dataset {raw.source}: its memory map of {store_bytes(raw) / 1e6:,.0f} MB in {folder.parent} cannot be "
            f"written ({error.strerror or error}). Point the variable O2O_CACHE to a folder with space, or pass "
            "--data.memmap false."
        ) from error
    remedy = "The disk may be failing: point the variable O2O_CACHE to another."
    with refusing(f"dataset {raw.source}: its memory map {folder} cannot be read", remedy, Failure):
        return found or _open(raw, env, folder)


def _whole(raw: RawDataset, env: EnvSpec | None, folder: Path) -> TransitionStore | None:
    """The transitions in ``folder``, None where it is not there or damaged, which is said."""
    if not folder.exists():
        return None
    try:
        return _open(raw, env, folder)
    except Exception as error:  # damaged bytes fail anywhere
        note_once(f"dataset {raw.source}: its memory map {folder} is damaged ({reason(error)}); it is made anew.")
        return None


def _key(raw: RawDataset, env: EnvSpec | None) -> str:
    digest = hashlib.sha256(raw.truncated.tobytes() + raw.terminated.tobytes())  # which a step limit may decide
    bounds = None if env is None else [env.action_low.tolist(), env.action_high.tolist(), env.horizon]
    facts = [FORMAT, raw.sha256, raw.units, raw.parts, raw.next_observations is not None, bounds]
    digest.update(json.dumps(facts).encode())
    return digest.hexdigest()[:32]


def _convert(raw: RawDataset, env: EnvSpec | None, folder: Path) -> None:
    partial = folder.with_suffix(".partial")
    for leftover in (partial, folder):  # of a process that was killed; damaged
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        partial.mkdir()
        _reserve(partial / TABLE, store_bytes(raw))
        store = build_store(raw, env, partial / TABLE)
        rows = {"td_rows": store.td_rows, "episodes": store.episodes, "complete": store.complete}
        facts = {"manifest": store.manifest.to_dict(), "crc": _crc(partial / TABLE)}
        save_atomically(partial / INDEX, {**rows, **facts})
        sync(partial / TABLE)
        os.replace(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _reserve(path: Path, size: int) -> None:
    """A file of ``size`` bytes, all of which the disk has: else writing to a map of it would kill the process."""
    with path.open("xb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.writelines(bytes(min(BLOCK, size - start)) for start in range(0, size, BLOCK))


def _crc(path: Path) -> int:
    """CRC-32 of a file, read once: of the memory only the page cache is used."""
    crc, block = 0, memoryview(bytearray(BLOCK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            crc = zlib.crc32(block[:count], crc)
    return crc


def _open(raw: RawDataset, env: EnvSpec | None, folder: Path) -> TransitionStore:
    """Raises anything where the folder is damaged."""
    index = inert.load(folder / INDEX, mmap=True)
    manifest = Manifest(**index.pop("manifest"))
    if (size := (folder / TABLE).stat().st_size) != store_bytes(raw):  # a read past its end would be a crash
        raise ValueError(f"it has {size:,} bytes, not {store_bytes(raw):,}")
    if _crc(folder / TABLE) != index.pop("crc"):
        raise ValueError("its checksum is another")
    with (folder / TABLE).open("rb") as file:
        access = mmap.PROT_READ | mmap.PROT_WRITE
        private = mmap.mmap(file.fileno(), size, flags=mmap.MAP_PRIVATE | NORESERVE, prot=access)
    rows = torch.frombuffer(private, dtype=torch.float32).view(len(raw), layout_of(raw).width)
    # the same rows may have another name now
    manifest = dataclasses.replace(manifest, source=raw.source, env_id=env.env_id if env else raw.env_id)
    return TransitionStore(matrix=rows, manifest=manifest, **index)
