"""Size before trust: what a file may declare is compared with what it holds before anything is allocated."""

import json
import math
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from o2o_lightning.errors import UserError

SLACK, RATIO = 2**24, 64  # numbers that repeat compress well, but not ten thousand of them into one
JSON_BYTES = 2**24
YAML_ENTRIES = 10_000
READING_BYTES = 2**32  # beyond what the process has


def allowed(held: int) -> int:
    """Bytes that a file of ``held`` bytes may declare, or unpack to: 16 MB, and 64 for each of its own."""
    return SLACK + RATIO * held


def read_json(content: bytes | str) -> Any:
    """``content`` parsed; ValueError for what is too long, too deep or no JSON."""
    if len(content) > JSON_BYTES:
        raise ValueError(f"JSON of more than {JSON_BYTES >> 20} MB")
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError("JSON of too many levels") from error


def read_yaml(text: str, name: str) -> Any:
    """``text`` parsed; UserError for what is too deep, or of aliases that come to more than they are written in."""
    try:
        content = yaml.safe_load(text)
        if _entries(content, {}) > YAML_ENTRIES:
            raise UserError(
                f"{name}: it has more than {YAML_ENTRIES:,} entries. Write fewer, or leave out its aliases."
            )
    except RecursionError as error:
        raise UserError(f"{name}: it has too many levels. Write fewer.") from error
    return content


def _entries(value: Any, known: dict[int, float]) -> float:
    """How many there are in nested containers, aliases written out; infinitely many in one that holds itself."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        known[id(value)] = math.inf
        inner = [*value.values()] if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_entries(item, known) for item in inner)
    return known[id(value)]


def check_text(path: Path, name: str, limit: int = JSON_BYTES) -> None:
    """Refuses what is no file, on which reading might wait for ever, or is too large for a text of ours."""
    if path.exists() and not path.is_file():
        raise UserError(f"{name}: it is {'a directory' if path.is_dir() else 'no file'}. Pass a file.")
    if path.exists() and path.stat().st_size > limit:
        raise UserError(f"{name}: it is larger than {limit >> 20} MB. Pass another file.")


@contextmanager
def bounded(what: str) -> Iterator[None]:
    """Lets the block allocate 4 GB and no more, as far as the system can: foreign readers and programs run in it."""
    before = limit_address_space(READING_BYTES)
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch's allocator says the latter
        if isinstance(error, MemoryError) or "memory" in str(error):
            raise UserError(
                f"{what}: reading it takes more than {READING_BYTES >> 30} GB. Pass another file."
            ) from error
        raise
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def limit_address_space(more: int) -> tuple[int, int]:
    """Lets this process allocate ``more`` bytes, and no more than before; returns the limits that it had.

    Where the system does not say what a process has, it may have what it likes.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    statm = Path("/proc/self/statm")
    ours = (int(statm.read_text().split()[0]) * resource.getpagesize() if statm.exists() else 2**62) + more
    limit = min([ours, *(value for value in (soft, hard) if value != resource.RLIM_INFINITY)])
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    return soft, hard
