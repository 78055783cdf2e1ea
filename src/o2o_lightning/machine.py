"""What a result depends on besides the package: libraries and processor."""

import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

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


def amd_under_linux() -> bool:
    """Whether this is one of AMD's x86 processors, under Linux; no other system says it as plainly."""
    if platform.machine() != "x86_64":
        return False
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
