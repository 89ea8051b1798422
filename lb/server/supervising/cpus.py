"""How many CPUs this process may use: by its affinity, and by the quota of its control group."""

from __future__ import annotations

import os
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")


def cpus() -> int:
    """The whole CPUs that this process may use, at least 1."""
    return max(1, min(_by_affinity(), quota(_own_group(), _GROUPS)))


def quota(group: str, root: Path) -> int:
    """The whole CPUs that a control group (version 2) may use by ``cpu.max``, its parents' included; else many."""
    least = 1 << 16
    path = root / group.lstrip("/")
    for each in (path, *path.parents):
        if not each.is_relative_to(root):
            break
        try:
            allowed, period = (each / "cpu.max").read_text().split()
            least = min(least, int(allowed) // int(period))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return least


def _own_group() -> str:
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return ""
    return next((line[3:] for line in lines if line.startswith("0::")), "")


def _by_affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
