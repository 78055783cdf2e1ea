"""The directory beside an output in which a dataset is made, until it is whole."""

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from o2o_lightning.checkpoint.io import remove_temporaries, write_json
from o2o_lightning.checkpoint.run import LOCK, Busy, lock, unlock
from o2o_lightning.data.hdf5 import file_sha256
from o2o_lightning.envs.make import EnvSpec
from o2o_lightning.errors import UserError
from o2o_lightning.recording.minari_writer import minari_path, write_minari
from o2o_lightning.recording.writer import Block, closed, joined, write_dataset

SUFFIX = ".making"
REQUEST, WRITING, FINISHED = "request.json", "writing.json", "finished.json"
DATASET = "dataset.hdf5"


class Working:
    """``OUTPUT.making``: what was asked for, what there is of it, and the step to ``OUTPUT``.

    ``output`` is a file, or Minari's id; of that the directory is in the current one, named after the id.
    """

    def __init__(self, output: str, format: str) -> None:
        self.output, self.format = output, format
        self.sha256: str | None = None
        if format == "minari":
            self.target = minari_path(output)
            self.path = Path(output.replace("/", "-") + SUFFIX).absolute()
        else:
            self.target = Path(output).absolute()
            self.path = self.target.with_name(self.target.name + SUFFIX)

    @property
    def spec(self) -> str:
        """The dataset's name, once it is there."""
        return f"minari:{self.output}" if self.format == "minari" else self.output

    @property
    def finished(self) -> bool:
        """Whether the dataset is whole; :meth:`finish` may still have to give it its name."""
        return (self.path / FINISHED).exists()

    def open(self, request: Mapping[str, Any]) -> None:
        """Takes the directory for ``request``, anew or to go on.

        Raises:
            UserError: the output exists, the directory was begun for another request, another process has it, or its
                folder is not there.
        """
        self._refuse_another()
        if not self.path.parent.is_dir() or not os.access(self.path.parent, os.W_OK | os.X_OK):
            raise UserError(f"--output {self.output}: the folder {self.path.parent} is missing, or cannot be written.")
        try:
            lock(self.path)
        except Busy as error:
            raise Busy(f"--output {self.output}: another process is making it. Wait for its end.") from error
        remove_temporaries(self.path)
        held = self.path / REQUEST
        if not held.exists():
            write_json(held, request)
            return
        before = json.loads(held.read_text())
        if others := [name for name, value in request.items() if before.get(name) != value]:
            unlock(self.path)
            raise UserError(
                f"--output {self.output}: it was begun with {others[0]} {before.get(others[0])}, this is "
                f"{request[others[0]]}. Give the same command to go on, pass another --output, or remove {self.path}."
            )

    def write(
        self, rows: int, blocks: Iterable[Block], env: EnvSpec, metadata: Mapping[str, Any], policy: Mapping[str, Any]
    ) -> None:
        """Writes the dataset; see :func:`write_dataset` for what it takes. :meth:`finish` comes next."""
        self._refuse_another()
        made = self.path / DATASET
        if self.format == "minari":
            write_json(self.path / WRITING, {"output": self.output})
            whole = joined(list(closed(blocks)))
            write_minari(self.output, whole, env.env_id, env.action_low, env.action_high, metadata)
        else:
            made.unlink(missing_ok=True)
            write_dataset(made, rows, closed(blocks), metadata, policy)
        write_json(self.path / FINISHED, {"sha256": None if self.format == "minari" else file_sha256(made)})

    def finish(self) -> None:
        """Gives the whole dataset its name, and removes the directory."""
        self.sha256 = json.loads((self.path / FINISHED).read_text())["sha256"]
        made = self.path / DATASET
        if made.exists():
            try:
                os.link(made, self.target)  # unlike a rename, never over another file
            except FileExistsError:
                pass
            except OSError:  # a file system without links
                if not self.target.exists():
                    os.rename(made, self.target)
        if self.format == "hdf5" and file_sha256(self.target) != self.sha256:
            raise UserError(
                f"--output {self.output}: it exists, and nothing is written over. The new dataset is in {made}."
            )
        unlock(self.path)
        shutil.rmtree(self.path)

    def release(self) -> None:
        """Lets go of the directory, and removes it where nothing has been done in it: bad input leaves nothing."""
        if self.path.exists():
            unlock(self.path)
            if {path.name for path in self.path.iterdir()} <= {REQUEST, LOCK}:
                shutil.rmtree(self.path)

    def _refuse_another(self) -> None:
        if self.target.exists() and not self.finished and not (self.path / WRITING).exists():
            raise UserError(
                f"--output {self.output}: it exists, and nothing is written over. Pass another --output, or remove it."
            )
