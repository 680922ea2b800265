"""How many CPU cores this process may use."""

import math
import os
from pathlib import Path, PurePosixPath


def available_cores() -> int:
    """The cores that the process may run on (`taskset`, cpusets), but no more than its CPU quota is worth, rounded up:
    in a container that may use 2 of 64 cores, 64 busy processes would mostly wait."""
    return max(1, math.ceil(min(len(os.sched_getaffinity(0)), cpu_quota())))


def cpu_quota(groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> float:
    """CPU seconds per second that the process's control groups, of Linux's version 1 or 2, allow it (`docker run
    --cpus`, limits in Kubernetes, systemd's CPUQuota); infinite without a limit.

    groups: the groups that the process is in. root: where the groups' files are."""
    try:
        lines = groups.read_text().splitlines()
    except OSError:
        return math.inf
    quotas = [math.inf]
    for line in lines:
        _, controllers, own = line.split(":", 2)
        if not controllers:
            quotas += (_quota_2(folder) for folder in _folders(root, own))
        elif "cpu" in controllers.split(","):
            quotas += (_quota_1(folder) for name in ("cpu", controllers) for folder in _folders(root / name, own))
    return min(quotas)


def _folders(root: Path, own: str) -> list[Path]:
    """A group's folder and those of the groups around it; in a container some may not be visible."""
    path = PurePosixPath(own.lstrip("/"))
    return [root / path, *(root / parent for parent in path.parents)]


def _quota_2(folder: Path) -> float:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return math.inf if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return math.inf


def _quota_1(folder: Path) -> float:
    try:
        quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        return quota / period if quota > 0 else math.inf
    except (OSError, ValueError):
        return math.inf
