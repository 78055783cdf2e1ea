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


def processor() -> str:
    """The processor's name, as plainly as the system says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
