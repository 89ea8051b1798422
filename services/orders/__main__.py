"""``python -m services.orders``: one instance of the service."""

from __future__ import annotations

from services.orders.service import build
from services.runtime.server import serve

if __name__ == "__main__":
    serve("orders", build)
