"""Where the real servers' programs are: on PATH, or in ``.cache/bin`` where ``make servers`` puts them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILT = ROOT / ".cache" / "bin"
HOW_TO_GET = "`make servers` builds them into .cache/bin (needs Go), and says how to get PostgreSQL"
SERVERS = ("consul", "jaeger", "gopeer", "postgres")


def find(name: str) -> Path | None:
    """The program of the server ``name``, one of ``SERVERS``, or None."""
    found = shutil.which(name) or shutil.which(name, path=str(BUILT))
    if found is None and name == "postgres":  # Debian keeps it off PATH, one directory a version
        versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
        found = shutil.which(name, path=str(versions[-1])) if versions else None
    return Path(found) if found else None


def required() -> bool:
    """Whether a missing server is a failure (``CI=true``) and not a reason to skip."""
    return os.environ.get("CI", "").lower() in ("true", "1")
