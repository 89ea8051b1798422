"""The directory in which a demo keeps its data, and the removal of those that were left behind.

A demo holds a lock on a file in its directory for as long as it lives. The kernel lets go of it
however the process ends, so a directory whose lock can be had belongs to nobody: no process id is
compared, and none can be mistaken for another that got the same number.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path

_PREFIX = "mesh-demo-"
_LOCK = "owner.lock"
# A directory without a lock file is one that is just being made, or was just being removed.
_UNFINISHED_S = 60.0


def remove_stale(base: Path | None = None) -> int:
    """Remove what demos left in ``base`` (default: the directory for temporary files). Returns how many."""
    removed = 0
    for directory in sorted((base or Path(tempfile.gettempdir())).glob(_PREFIX + "*")):
        with contextlib.suppress(OSError):  # somebody else's, or gone meanwhile
            if directory.stat().st_uid == os.getuid() and not directory.is_symlink() and _abandoned(directory):
                shutil.rmtree(directory)
                removed += 1
    return removed


def _abandoned(directory: Path) -> bool:
    try:
        lock = os.open(directory / _LOCK, os.O_RDWR)
    except FileNotFoundError:
        return time.time() - directory.stat().st_mtime > _UNFINISHED_S
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True


class StateDirectory:
    """A new directory of our own below ``base``, locked until ``remove``."""

    def __init__(self, base: Path | None = None) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
        self._lock = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def remove(self) -> None:
        """Remove the directory with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)
