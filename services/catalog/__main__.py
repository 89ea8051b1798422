"""``python -m services.catalog``: one instance of the service."""

from __future__ import annotations

from services.catalog.service import build
from services.runtime.server import serve

if __name__ == "__main__":
    serve("catalog", build)
