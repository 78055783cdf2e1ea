"""Versions of the libraries that a result depends on."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

RESULT = ("o2o-lightning", "torch", "lightning", "torchrl", "tensordict", "gymnasium", "mujoco", "numpy")
DATASET = ("torch", "torchrl", "gymnasium", "h5py")


def library_versions(names: Sequence[str] = RESULT) -> dict[str, str]:
    """Versions of those of ``names`` that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
