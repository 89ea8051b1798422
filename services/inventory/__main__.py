"""``python -m services.inventory``: one instance of the service."""

from __future__ import annotations

from services.inventory.service import build
from services.runtime.server import serve

if __name__ == "__main__":
    serve("inventory", build)
