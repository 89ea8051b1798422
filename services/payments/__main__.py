"""``python -m services.payments``: one instance of the service."""

from __future__ import annotations

from services.payments.service import build
from services.runtime.server import serve

if __name__ == "__main__":
    serve("payments", build)
