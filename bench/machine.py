"""What a benchmark ran on."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

CORES = len(os.sched_getaffinity(0))
"""How many this process may use."""


def processor() -> str:
    """Such as `2 cores of AMD EPYC 9B14`."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"{CORES} cores of {names[0].split(':')[1].strip() if names else platform.machine()}"


def versions(packages: Iterable[str]) -> str:
    """Those that are installed, such as `pillow 13.0.0, isal 1.9.1`."""
    found = []
    for name in packages:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)
