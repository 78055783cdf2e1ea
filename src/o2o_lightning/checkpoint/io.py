"""Files that are either the old one or the new one, never half of either."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from o2o_lightning.errors import Failure

TEMPORARY = ".tmp"


def write_atomically(path: str | Path, content: bytes) -> None:
    """Writes beside ``path``, syncs, then renames: a full disk or a kill leaves the previous file whole."""
    _replace(Path(path), lambda file: file.write(content))


def save_atomically(path: str | Path, value: Any) -> None:
    """``torch.save``, atomically."""
    _replace(Path(path), lambda file: torch.save(value, file))


def write_json(path: str | Path, value: Any) -> None:
    """``value`` as indented JSON, atomically."""
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


def cannot_write(path: str | Path, error: OSError) -> Failure:
    """The line for a file that could not be written."""
    return Failure(
        f"{path}: it cannot be written ({error.strerror or error}); what was there before is intact. "
        "Free space or permissions, then go on with `o2o resume RUN_DIR`."
    )


def remove_temporaries(folder: Path) -> None:
    """Removes what a kill left half-written; nobody else may be writing."""
    for path in folder.rglob(f".*{TEMPORARY}"):
        path.unlink(missing_ok=True)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint writer with the temporary file in the checkpoint's own directory.

    Lightning's own writes to the system's temporary folder and moves; across file systems the move is a copy, and
    a full disk then destroys the previous checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        save_atomically(path, checkpoint)


class _Watched:
    """A file that remembers why a write failed: ``torch.save`` reports only that it did."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, content: Any) -> int:
        try:
            return self.file.write(content)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def _replace(path: Path, write: Callable[[Any], Any]) -> None:
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=TEMPORARY)
        with os.fdopen(descriptor, "wb") as file:
            watched = _Watched(file)
            try:
                write(watched)
            except RuntimeError as error:
                raise watched.error or error from error
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_directory(path.parent)
    except OSError as error:
        _discard(temporary)
        raise cannot_write(path, error) from error
    except BaseException:
        _discard(temporary)
        raise


def _discard(temporary: str | None) -> None:
    if temporary is not None:
        Path(temporary).unlink(missing_ok=True)


def _sync_directory(path: Path) -> None:
    # the rename itself must survive a power cut, else side state outlives the checkpoint that names it
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
