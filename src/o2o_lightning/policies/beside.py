"""What other programs put beside a zip: its VecNormalize and configuration, as rl-zoo3, the hub and callbacks do."""

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from o2o_lightning.policies.source import BadPolicy

MOST_BYTES, MOST_FILES = 2**16, 1000  # of a file that is looked through, and of a folder
_NORMALIZE = re.compile(r"\bnormalize['\"]?\s*(?::|\n\s*-)\s*['\"]?(\w+|\{|dict)", re.IGNORECASE)
_NOT_OBSERVATIONS = re.compile(r"norm_obs['\"]*\s*[:=]\s*false", re.IGNORECASE)


def statistics_beside(path: Path) -> Path | None:
    """The file of statistics that belongs to the zip ``path`` by its name or place; None where there is none.

    Raises:
        BadPolicy: a configuration beside it says that its observations were normalised, or statistics lie there, and
            none of them belongs to it by its name.
    """
    if (found := next((file for file in _places(path) if file.is_file()), None)) is not None:
        return found
    others = [file.name for file in islice(_pickles(path), MOST_FILES) if "VecNormalize" in _text(file)]
    said = next((file for file in _configurations(path) if _normalizes(file)), None)
    if others or said is not None:
        why = (
            f"{said.name} beside it says that it was"
            if said is not None
            else f"{others[0]} beside it is a VecNormalize"
        )
        raise BadPolicy(
            f"were its observations normalised? {why}, and no statistics belong to it by their name. Pass --normalizer "
            "FILE, its vecnormalize.pkl, or --normalizer none."
        )
    return None


def has_time_feature(path: Path) -> bool:
    """Whether a configuration beside the zip ``path`` says that the remaining time was added to its observations."""
    return any("TimeFeatureWrapper" in _text(file) for file in _configurations(path))


def _places(path: Path) -> Iterator[Path]:
    for ending in ("pkl", "json", "npz"):
        yield path.with_name(f"{path.stem}.vecnormalize.{ending}")
    for name in ("vecnormalize", "vec_normalize"):
        yield path.with_name(f"{path.stem}_{name}.pkl")
    if match := re.fullmatch(r"(.+)_(\d+_steps)", path.stem):  # CheckpointCallback
        yield path.with_name(f"{match[1]}_vecnormalize_{match[2]}.pkl")
        return  # the folder's other statistics are of another step
    for folder in _folders(path):
        for name in ("vecnormalize", "vec_normalize"):
            yield folder / f"{name}.pkl"


def _folders(path: Path) -> Iterator[Path]:
    """The zip's own folder; rl-zoo3's ENV/ beside ENV.zip, ALGO-ENV.zip, and in ENV_1/ beside best_model.zip."""
    yield path.parent
    yield path.with_suffix("")
    yield path.parent / path.stem.partition("-")[2]
    yield path.parent / path.resolve().parent.name.rpartition("_")[0]


def _pickles(path: Path) -> Iterator[Path]:
    """Whatever might be statistics, in the zip's folders and the one above."""
    for folder in dict.fromkeys((*_folders(path), path.resolve().parent.parent)):
        yield from (file for file in sorted(folder.glob("*.pkl")) if file.is_file())


def _configurations(path: Path) -> Iterator[Path]:
    for folder in _folders(path):
        for name in ("config.yml", "args.yml"):
            if (file := folder / name).is_file():
                yield file


def _normalizes(file: Path) -> bool:
    """Whether a configuration says that observations are normalised."""
    text = _text(file)
    match = _NORMALIZE.search(text)
    return match is not None and match[1].lower() not in ("false", "null", "no") and not _NOT_OBSERVATIONS.search(text)


def _text(file: Path) -> str:
    """The beginning of a file as plain text; nothing in it is constructed."""
    with file.open("rb") as opened:
        return opened.read(MOST_BYTES).decode("utf-8", "replace")
