"""Files that are either the old one or the new one, never half of either."""

import io
import json
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from o2o_lightning.checkpoint import inert
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


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Says in one line that ``path`` could not be written."""
    try:
        yield
    except OSError as error:
        raise Failure(
            f"{path}: it cannot be written ({error.strerror or error}); what was there before is intact. "
            "Free space or permissions, then go on with `o2o resume RUN_DIR`."
        ) from error


def sync(path: Path) -> None:
    """What was written to a file, or renamed in a directory, reaches the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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

    def load_checkpoint(self, path: Any, *options: Any, **more: Any) -> dict[str, Any]:
        """What :func:`inert.load` takes; ``options``, of devices and of trust, are left unused."""
        return dict(inert.load(path))


class _Watched(io.BufferedWriter):
    """A file that remembers why a write failed: ``torch.save`` reports only that it did."""

    error: OSError | None = None

    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except OSError as error:
            self.error = error
            raise


def _replace(path: Path, write: Callable[[Any], Any]) -> None:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}{TEMPORARY}")
        try:
            with _Watched(io.FileIO(temporary, "xb")) as file:  # readable by whom the user's mask lets, as any file is
                try:
                    write(file)
                except RuntimeError as error:
                    raise file.error or error from error
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync(path.parent)  # a rename must survive a power cut, else side state outlives the checkpoint that names it
