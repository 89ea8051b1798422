"""Where the real servers' programs are: on PATH, or in ``.cache/bin`` where ``make servers`` puts them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILT = ROOT / ".cache" / "bin"
HOW_TO_GET = "`make servers` builds them into .cache/bin (needs Go)"
SERVERS = ("consul", "jaeger", "gopeer")


def find(name: str) -> Path | None:
    """The program of the server ``name`` (``consul``, ``jaeger``, ``gopeer``), or None."""
    found = shutil.which(name) or shutil.which(name, path=str(BUILT))
    return Path(found) if found else None


def required() -> bool:
    """Whether a missing server is a failure (``CI=true``) and not a reason to skip."""
    return os.environ.get("CI", "").lower() in ("true", "1")
