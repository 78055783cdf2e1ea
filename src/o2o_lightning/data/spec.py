"""Dataset specs: one string that names a dataset of any source."""

import difflib
from pathlib import Path
from typing import Any, NamedTuple

from o2o_lightning.data.raw import NOTHING, RawDataset, Said, check_shapes, wrong
from o2o_lightning.errors import UserError

PREFIXES = ("d4rl", "minari", "embedded")
FORMS = "`path/to/file.hdf5`, `d4rl:NAME`, `minari:ID` or `embedded:NAME`"
EMBEDDED = Path(__file__).parent / "embedded"
_SUFFIXES = (".hdf5", ".h5", ".hdf")


class SpecEntry(NamedTuple):
    """A dataset that can be named."""

    spec: str
    env_id: str | None
    where: str  # "package", "cached", "local", or "download" where it must be fetched first


def load_raw(spec: str, check: bool = True, said: Said = NOTHING) -> RawDataset:
    """Reads the dataset that ``spec`` names, downloading it if it must be.

    Args:
        spec: one of :data:`FORMS`, a D4RL name also with ``#sha256=HEX``.
        check: refuse arrays of wrong rank or length.
        said: what the user says of it.

    Raises:
        UserError: no such form or name, or the source's own errors.
    """
    raw = _read(spec, said)
    if check:
        check_shapes(raw)
    return raw


def _read(spec: str, said: Said) -> RawDataset:
    if spec.startswith("d4rl:"):
        from o2o_lightning.data.d4rl import load_d4rl

        return load_d4rl(spec, said)
    if spec.startswith("minari:"):
        from o2o_lightning.data.minari_source import load_minari

        return load_minari(spec, said)
    from o2o_lightning.data.hdf5 import read_hdf5

    path = Path(spec)
    if spec.startswith("embedded:"):
        names = _embedded()
        if (name := spec.removeprefix("embedded:")) not in names:
            raise UserError(
                f"dataset {spec}: the package embeds no '{name}'. It has: "
                f"{', '.join(f'`embedded:{known}`' for known in names) or 'none'}."
            )
        path = names[name]
    elif not spec.endswith(_SUFFIXES) and not path.exists():
        raise _unknown(spec)
    return read_hdf5(path, source=spec, said=said)


def list_specs() -> list[SpecEntry]:
    """Embedded datasets, Minari's local ones where Minari is installed, and D4RL's."""
    from o2o_lightning.data.d4rl import D4RL_TASKS, cached_path

    entries = [SpecEntry(f"embedded:{name}", _env_id(path), "package") for name, path in _embedded().items()]
    for dataset_id, metadata in _minari_datasets().items():
        env_id = getattr(metadata.get("env_spec"), "id", None)
        entries.append(SpecEntry(f"minari:{dataset_id}", env_id, "local"))
    for name, task in D4RL_TASKS.items():
        entries.append(SpecEntry(f"d4rl:{name}", task.env_id, "cached" if cached_path(name).exists() else "download"))
    return entries


def _minari_datasets() -> dict[str, dict[str, Any]]:
    try:
        import minari
    except ImportError:
        return {}
    return minari.list_local_datasets()  # type: ignore[no-any-return]


def _embedded() -> dict[str, Path]:
    return {path.stem: path for path in sorted(EMBEDDED.glob("*.hdf5"))}


def _env_id(path: Path) -> str | None:
    import h5py

    with h5py.File(path, "r") as file:
        return file["metadata/env_id"].asstr()[()] if "metadata/env_id" in file else None


def _unknown(spec: str) -> UserError:
    from o2o_lightning.data.d4rl import D4RL_TASKS

    prefix, colon, name = spec.partition(":")
    if colon:
        close = difflib.get_close_matches(prefix.lower(), PREFIXES, n=1, cutoff=0.4)
        guess = f"{close[0]}:{name}" if close else None
    else:
        known = [f"embedded:{name}" for name in _embedded()] + [f"d4rl:{task}" for task in D4RL_TASKS]
        by_name = {entry.partition(":")[2]: entry for entry in reversed(known)}
        close = difflib.get_close_matches(spec, by_name, n=1, cutoff=0.6)
        guess = by_name[close[0]] if close else None
    hint = f" Did you mean `{guess}`?" if guess else ""
    return wrong(spec, f"neither a file nor a known form.{hint} Write {FORMS}; `o2o data list` has names.")
