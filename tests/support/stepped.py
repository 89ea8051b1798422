"""A child process whose wall clock can be set while it runs: Debian's libfaketime, core's C code included."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FILE = "FAKETIME_TIMESTAMP_FILE"
LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
"""Where Debian's package ``libfaketime`` puts it; None when it is not there."""

needs_faketime = pytest.mark.skipif(
    LIBRARY is None and not os.environ.get("CI"), reason="Debian's package libfaketime is not installed"
)


def environment(folder: str, ahead_s: float = 0.0) -> Mapping[str, str]:
    """For a process whose wall clock begins ``ahead_s`` seconds ahead. Its monotonic clock is the true one."""
    file = Path(folder) / "clock"
    file.write_text(f"{ahead_s:+g}")
    faked = {
        FILE: str(file),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "LD_PRELOAD": str(LIBRARY),
    }
    return {**os.environ, **faked}


def step(ahead_s: float) -> None:
    """Set the clock of this process, which `environment` was made for: so many seconds from the true one."""
    file = Path(os.environ[FILE])
    new = file.with_suffix(".new")
    new.write_text(f"{ahead_s:+g}")
    new.replace(file)  # in one move: it is read at each look at the clock


def run(module: str, *arguments: str, within_s: float = 120.0) -> Any:
    """What ``python -m MODULE`` printed as JSON, in such a process. Raises when it hangs or fails."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            env=environment(folder),
            capture_output=True,
            text=True,
            timeout=within_s,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-5000:]
    return json.loads(done.stdout.splitlines()[-1])
