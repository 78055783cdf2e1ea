"""What processor this is."""

from __future__ import annotations

import platform
from pathlib import Path


def amd_under_linux() -> bool:
    """Whether this is one of AMD's x86 processors, under Linux; no other system says it as plainly."""
    if platform.machine() != "x86_64":
        return False
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
