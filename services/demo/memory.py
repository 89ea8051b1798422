"""How much memory processes take together."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterable
from pathlib import Path


def together(pids: Iterable[int]) -> tuple[float, str]:
    """Megabytes, and which measure it is.

    On Linux the proportional set size, in which a page shared by n processes counts 1/n each, so that
    the sum is what they really take; elsewhere the resident set size, whose sum counts shared pages
    several times. Processes that are gone count nothing.
    """
    pids = list(pids)
    if Path("/proc/self/smaps_rollup").exists():
        kilobytes = 0
        for pid in pids:
            with contextlib.suppress(OSError):
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                kilobytes += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        return kilobytes / 1024, "PSS"
    try:
        listed = subprocess.run(
            ["ps", "-o", "rss=", "-p", ",".join(map(str, pids))],
            capture_output=True,
            text=True,
            check=False,
        ).stdout
    except OSError:
        return 0.0, "unknown"
    return sum(map(int, listed.split())) / 1024, "RSS"
